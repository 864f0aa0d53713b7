"""Change the code at random, in a copy, and list the changes that the package's own tests miss.

    python tests/mutate.py                       what differs from the branch main
    python tests/mutate.py ravqa/metrics/evqa.py these files, or all of a folder
    python tests/mutate.py --sample 100 ravqa/metrics

A package's own tests are those in the folder of `tests` with its name; a module at the top of
`ravqa` has those in the files that name it. Each change that survives shows that a test cannot fail
or does not exist, or that the change has no effect: say which.
"""

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Each change is tried in a process in which no test has run: models and results that tests keep
# would hide changes of what made them.
CONFIG = """

[tool.mutmut]
source_paths = ["ravqa"]
only_mutate = {files}
also_copy = {others}
pytest_add_cli_args = ["-p", "no:cacheprovider"]
pytest_add_cli_args_test_selection = {tests}
track_dependencies = false
use_git_change_detection = false
process_isolation = "forkserver"
"""


def git(*arguments):
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()


def changed(branch):
    """The modules that differ from where this branch left `branch`, new ones included."""
    [start] = git("merge-base", branch, "HEAD")
    names = git("diff", "--name-only", "--diff-filter=d", start, "--", "ravqa")
    names += git("ls-files", "--others", "--exclude-standard", "--", "ravqa")
    return sorted({name for name in names if name.endswith(".py")})


def modules(names):
    """The modules that are named, or stand in a folder that is."""
    paths = [ROOT / name for name in names]
    if missing := [str(path) for path in paths if not path.exists()]:
        sys.exit(f"no such file: {', '.join(missing)}")
    found = [f for p in paths for f in ([p] if p.is_file() else sorted(p.rglob("*.py")))]
    return [str(file.relative_to(ROOT)) for file in found]


def own_tests(files):
    """The tests that mirror the packages of `files`."""
    found = set()
    for file in files:
        package = Path(file).parts[1]
        if (ROOT / "tests" / package).is_dir():
            found.add(f"tests/{package}")
        else:
            word = re.compile(rf"\b{Path(file).stem}\b")
            tests = (ROOT / "tests").rglob("test_*.py")
            found |= {str(t.relative_to(ROOT)) for t in tests if word.search(t.read_text())}
    return sorted(found)


def copied(folder, files, tests):
    """Copy what git knows, or would, and say what mutmut is to do."""
    for name in git("ls-files", "--cached", "--others", "--exclude-standard"):
        if (ROOT / name).is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target)
    others = [p.name for p in folder.iterdir() if p.name not in {"ravqa", "tests"}]
    with (folder / "pyproject.toml").open("a", encoding="utf-8") as config:
        config.write(CONFIG.format(files=files, others=others, tests=tests))


def mutmut(folder, *arguments, quiet=False):
    """What mutmut prints; shown as it comes unless `quiet`."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "mutmut", *arguments],
        cwd=folder,
        env=environment,
        check=False,
        capture_output=quiet,
        text=True,
    )
    return done.stdout or ""


def states(folder):
    """Of each mutant: killed, survived, no tests, timeout, not checked, ..."""
    lines = mutmut(folder, "results", "--all", "True", quiet=True).splitlines()
    return dict(line.strip().split(": ", 1) for line in lines if "__mutmut_" in line)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", metavar="FILE", help="files or folders of ravqa")
    parser.add_argument("--against", default="main", metavar="BRANCH", help="default: main")
    parser.add_argument("--sample", type=int, metavar="N", help="try N mutants drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    files = modules(options.files) if options.files else changed(options.against)
    if not files:
        sys.exit("nothing has changed: name files or folders")
    tests = own_tests(files)
    print(f"{len(files)} files, tests: {' '.join(tests)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="ravqa-mutants-") as name:
        folder = Path(name)
        copied(folder, files, tests)
        wanted = []
        if options.sample:
            said = mutmut(folder, "run", "nothing*", quiet=True)  # makes all, and tries none
            names = sorted(states(folder)) or sys.exit(said)
            wanted = random.Random(options.seed).sample(names, min(options.sample, len(names)))
        mutmut(folder, "run", "--max-children", str(options.processes), *wanted)
        found = {k: v for k, v in states(folder).items() if not wanted or k in wanted}
        print()
        for mutant, state in found.items():
            if state not in {"killed", "timeout", "caught by type check"}:
                print(mutmut(folder, "show", mutant, quiet=True))
    counts = {s: list(found.values()).count(s) for s in sorted(set(found.values()))}
    print(", ".join(f"{state}: {count}" for state, count in counts.items()))
    return 0 if found and counts.keys() <= {"killed", "timeout", "caught by type check"} else 1


if __name__ == "__main__":
    sys.exit(main())
