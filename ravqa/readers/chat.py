"""Prompts as chat messages, for models with a chat template."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from ravqa.core.errors import PromptError, UserError, first_line
from ravqa.core.settings import Options, Text
from ravqa.core.templates import apply_chat_template
from ravqa.readers.loading import LocalConfig


class ChatConfig(LocalConfig):
    """Options of readers whose model may have a chat template.

    Attributes:
        prompt_form: "chat" puts the prompt into the model's chat template, "plain" completes it;
            "auto" is chat if the model has a template.
        system: system message of a chat; null for the template's own.
        chat_options: further variables of the chat template, such as {enable_thinking: false}.
        stop_at_newline: whether a line break ends the answer.
    """

    prompt_form: Literal["auto", "plain", "chat"] = "auto"
    system: Text | None = None
    chat_options: Options = Field(default_factory=dict)
    stop_at_newline: bool = False

    def template(self, own: Any, why: str) -> str | None:
        """Return the template to use for a model whose own is `own`; None for the plain form.

        Args:
            own: as transformers reads it: a text, or several by their names, of which "default" is
                taken; None without one.

        Raises:
            UserError: the chat form is set, but the model has no template; its template is empty,
                or several have names without "default".
        """
        if self.prompt_form == "plain":
            return None
        if isinstance(own, dict):
            if own and "default" not in own:
                raise UserError(
                    f"{why}: {self.model} has no default chat template, but those for "
                    f"{', '.join(map(str, own))}: set prompt_form to plain, or name one default"
                )
            own = own.get("default")
        if own is not None and not isinstance(own, str):
            raise UserError(f"{why}: the chat template of {self.model} is no text, but {own!r:.60}")
        if own == "":
            raise UserError(
                f"{why}: the chat template of {self.model} is empty, as after half a download: "
                "copy it again, or set prompt_form to plain"
            )
        if self.prompt_form == "chat" and not own:
            raise UserError(f"{why}: {self.model} has no chat template: set prompt_form to plain")
        return own or None


def chat_text(config: ChatConfig, renderer: Any, template: str, content: Any) -> str:
    """Return one user message as given to the model, up to where its answer begins.

    Args:
        renderer: the tokenizer or processor.
        content: the message: a text, or a list of parts for a processor.

    Raises:
        PromptError: the template fails.
    """
    messages = [{"role": "user", "content": content}]
    if config.system is not None:
        told: Any = config.system
        if not isinstance(content, str):
            told = [{"type": "text", "text": told}]
        messages.insert(0, {"role": "system", "content": told})
    try:
        text = apply_chat_template(
            renderer,
            messages,
            chat_template=template,
            add_generation_prompt=True,
            **config.chat_options,
        )
        text.encode()
    except UnicodeEncodeError:
        raise PromptError(
            f"the chat template of {config.model} fails: it writes half a character (a surrogate)"
        ) from None
    except Exception as e:  # a template is a program from the checkpoint
        raise PromptError(f"the chat template of {config.model} fails: {first_line(e)}") from None
    return text
