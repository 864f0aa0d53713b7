"""Serving the demo's page on this machine."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ravqa.core.errors import UserError, import_extra
from ravqa.doors.asgi import LOOPBACK
from ravqa.doors.demo import view
from ravqa.doors.demo.guard import Guard
from ravqa.doors.demo.page import Page, blocks, style
from ravqa.doors.feedback import Feedback
from ravqa.doors.shelf import Shelf
from ravqa.images.uploads import Limits

_QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_SHARE": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
_MONO = ("ui-monospace", "SF Mono", "Menlo", "Consolas", "monospace")


@contextmanager
def served(
    shelf: Shelf,
    feedback: Feedback,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    limits: Limits | None = None,
) -> Iterator[str]:
    """Serve the page until the context ends, and yield its address.

    Args:
        host: address to listen at; 0.0.0.0 for all of this machine's.
        port: None for the first free one from 7860.

    Raises:
        MissingExtraError: gradio is not installed.
        UserError: the port is taken, or the host is not this machine's.
    """
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="ravqa-demo-", ignore_cleanup_errors=True) as folder:
        os.environ.update(_QUIET)
        os.environ["GRADIO_TEMP_DIR"] = folder  # read by each component when it is made
        gr: Any = import_extra("gradio", "demo", why="ravqa demo")
        starlette: Any = import_extra("starlette.middleware", "demo", why="ravqa demo")
        page = Page(shelf, feedback, Path(folder), limits)
        made = blocks(page, gr)
        guard = starlette.Middleware(
            Guard,
            uploads=Path(folder),
            most_bytes=limits.file,
            hosts=LOOPBACK if host in LOOPBACK else None,
        )
        try:
            made.launch(
                server_name=host,
                server_port=port,
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                inbrowser=False,
                show_error=False,
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                mcp_server=False,
                ssr_mode=False,
                pwa=False,
                num_workers=0,
                max_file_size=limits.file,
                app_kwargs={"middleware": [guard], "docs_url": None, "redoc_url": None},
                state_session_capacity=200,
                theme=_theme(gr),
                css=style(),
                head=f"<script>{view.source('demo.js')}</script>",
            )
        except OSError:
            asked = f"port {port}" if port else "no port from 7860 to 7959"
            raise UserError(
                f"the demo cannot listen at {host}, {asked}: it is taken, or the address is not "
                "this machine's: choose others with --host and --port"
            ) from None
        try:
            shown = "127.0.0.1" if host in {"0.0.0.0", "::"} else host
            yield f"http://{f'[{shown}]' if ':' in shown else shown}:{made.server_port}/"
        finally:
            made.close(verbose=False)


def _theme(gr: Any) -> Any:
    """Return Gradio's theme with fonts of the visitor's system, and colours that can be read."""
    made = gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=_FONTS, font_mono=_MONO)
    return made.set(
        button_primary_background_fill="#0b5cad",
        button_primary_background_fill_dark="#0b5cad",
        button_primary_background_fill_hover="#094a8c",
        button_primary_background_fill_hover_dark="#1269c0",
        button_primary_text_color="#ffffff",
        body_text_color_subdued="#5b6673",
        input_placeholder_color="#67727f",
        block_label_text_color="*body_text_color",
        block_radius="10px",
    )
