// A page of one question's matches. A page that shows it in a frame is told how high it is.
(() => {
  const root = document.getElementById("match");
  root.append(ravqa.matches(JSON.parse(document.getElementById("data").textContent)));
  const tell = () => parent.postMessage({ height: Math.ceil(root.getBoundingClientRect().height) }, "*");
  if (parent !== window) new ResizeObserver(tell).observe(root);
})();
