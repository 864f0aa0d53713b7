"""Templates that loop, double or widen without end stop at a limit; others are as in Jinja."""

# ruff: noqa: E501 (templates)

import time

import pytest
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers.utils.chat_template_utils import render_jinja_template

from ravqa.core.templates import LimitedEnvironment, LimitError, apply_chat_template, compiled

MESSAGES = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?\n"}]},
    {"role": "assistant", "content": "<think>hm</think>A koala."},
]


def rendered(source, **values):
    environment = LimitedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.render(compiled(environment, source), values)


DOUBLED = (
    "{% set ns = namespace(x=START) %}{% for i in range(60) %}{% set ns.x = STEP %}{% endfor %}"
)


def doubled(start, step, after="{{ ns.x }}"):
    return DOUBLED.replace("START", start).replace("STEP", step) + after


ENDLESS = {
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a loop that writes": "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "a loop in a macro": (
        "{% macro f() %}{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}{% endmacro %}{{ f() }}"
    ),
    "recursion": (
        "{% macro m(n) %}{% if n < 100 %}{{ m(n + 1) }}{{ m(n + 1) }}{% endif %}{% endmacro %}"
        "{{ m(0) }}"
    ),
    "a recursive loop": (
        "{% for x in [1, 2] recursive %}{% if loop.depth < 100 %}{{ loop([1, 2]) }}{% endif %}"
        "{% endfor %}"
    ),
    "texts added": doubled("'x'", "ns.x + ns.x"),
    "texts joined": doubled("'x'", "ns.x ~ ns.x"),
    "lists in lists": doubled("[1]", "[ns.x, ns.x]"),
    "tuples in tuples": doubled("(1,)", "(ns.x, ns.x)", "{{ ns.x|string }}"),
    "objects in objects": doubled("1", "{'a': ns.x, 'b': ns.x}", "{{ ns.x|tojson }}"),
    "dicts": doubled("{}", "dict(a=ns.x, b=ns.x)"),
    "squares": doubled("7", "ns.x * ns.x"),
    "replaced": doubled("'ab'", "ns.x|replace('', ns.x)"),
    "replaced by the method": doubled("'ab'", "ns.x.replace('a', ns.x)"),
    "joined": doubled("'ab'", "ns.x.join([ns.x, ns.x, ns.x])"),
    "many values": "".join(f"{{% set a{i} = 'x' * 4000000 %}}" for i in range(100)),
    "slices": (
        "{% set x = 'x' * 4000000 %}{% for i in range(99999) %}{% if x[1:] %}{% endif %}{% endfor %}"
    ),
    **{
        source: "{{ " + source + " }}"
        for source in (
            *("'x' * 10**9", "10**9 * 'x'", "['x'] * 10**9", "10 ** (10 ** 8)", "9 ** (9 ** 9)"),
            *("'x'.ljust(10**9)", "'x'.rjust(999999999)", "'x'.zfill(999999999)"),
            *("'x'.center(999999999)", "'x'|center(999999999)", "'x'|center(width=999999999)"),
            *("'{:999999999}'.format(1)", "'{:{w}}'.format(1, w=999999999)"),
            *("'{0:>{1}}'.format('x', 999999999)", "'{a:999999999}'.format_map({'a': 1})"),
            *("('{0}' * 1000).format('x' * 1000000)", "('%(a)s' * 1000) % {'a': 'x' * 1000000}"),
            *("'%999999999d' % 1", "'%*d' % (999999999, 1)", "'%.999999999f' % 1.0"),
            *("'%999999999d'|format(1)", "('x'|attr('ljust'))(999999999)"),
            *("range(99999)|join('x' * 10000)", "range(99999)|map('center', 100000)|join"),
            *("('\n' * 100000)|indent(100000)", "('\t' * 100000).expandtabs(100000)"),
            *(
                "('a ' * 100000)|wordwrap(2, wrapstring='x' * 100000)",
                "[1]|batch(999999999, 1)|list",
            ),
            *("range(9999)|list|tojson(indent=999999)", "[1]|slice(999999999)|list"),
            *("('a' * 100000).translate({97: 'b' * 100000})", "['x' * 4000000] * 9"),
            *("'x'|truncate(999999999)", "('http://a.bc ' * 10000)|urlize(target='x' * 10000)"),
        )
    },
    "a filtered block": "{% filter center(999999999) %}a{% endfilter %}",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_without_end_is_stopped(name, monkeypatch):
    monkeypatch.setattr("ravqa.core.templates._STEPS", 5_000)
    began = time.process_time()
    with pytest.raises(LimitError, match=r"it (builds|takes) more than"):
        rendered(ENDLESS[name])
    assert time.process_time() - began < 5


def test_steps_that_are_slow_are_stopped_by_their_time(monkeypatch):
    monkeypatch.setattr("ravqa.core.templates._SECONDS", 0.2)
    source = "{% set x = 'x' * 4000000 %}{% for i in range(99999) %}{% if 'y' in x %}{% endif %}{% endfor %}"
    with pytest.raises(LimitError, match=r"more than 0\.2 s"):
        rendered(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ " + "-" * 5000 + "1 }}",
        "{{ " + "[" * 5000 + "]" * 5000 + " }}",
        "{% if 1 %}" * 5000 + "{% endif %}" * 5000,
        "{% for a in b %}" * 150 + "{% endfor %}" * 150,
        "{{ 1 " + "+ 1" * 5000 + " }}",
        "{{ a" + ".b" * 5000 + " }}",
        "x" * 2**21,
    ],
)
def test_a_template_that_is_nested_too_deeply_or_too_long_is_refused(source):
    with pytest.raises(TemplateError, match=r"nested too deeply|longer than"):
        rendered(source)


ALLOWED = [
    "{% for m in messages %}{% if loop.first %}F{% endif %}{{ loop.index }}/{{ loop.length }}"
    "{{ m['role']|upper }}{{ '\n' if not loop.last }}{% endfor %}",
    "{% set a, b = 1, 2 %}{{ a ~ b }}{{ [1, 2, 3][-1:] }}{{ {'a': 1} }}{{ (1, 2) }}",
    "{{ messages|map(attribute='role')|join(', ') }}{{ messages|selectattr('role', 'equalto', 'user')|list|length }}",
    "{{ 'a-b'.split('-')[0] }}{{ '%s=%d'|format('x', 3) }}{{ '{:>5}'.format(7) }}{{ '%05.1f' % 2 }}",
    "{% macro f(x) %}<{{ x }}>{{ caller() if caller }}{% endmacro %}{{ f(1) }}{% call f(2) %}c{% endcall %}",
    "{% set ns = namespace(n=0) %}{% for i in range(5) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
    "{{ 'x' * 3 }}{{ 3 * 'y' }}{{ 2 ** 10 }}{{ 7 % 4 }}{{ 'k' in 'koala' }}{{ 1 < 2 < 3 }}{{ 1700000000|string }}",
    "{% filter upper %}abc{% endfilter %}{% set z %}block{% endset %}{{ z }}{{ 'abc'[::-1] }}{{ nope }}",
    "{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% else %}none{% endfor %}{% for x in [] %}{% else %}e{% endfor %}",
    "{% for x in [1, [2, [3]]] recursive %}{{ loop(x) if x is sequence else x }}{% endfor %}",
    "{{ '  a b '|trim|title|replace('A', 'c')|center(9)|indent(2) }}{{ messages[0]|tojson }}",
]


@pytest.mark.parametrize("source", ALLOWED)
def test_other_templates_say_what_they_say_in_jinja(source):
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    expected = plain.from_string(source).render(messages=MESSAGES)
    assert rendered(source, messages=MESSAGES) == expected


# --- chat templates


class Tokenizer:
    """Renders chats as transformers' tokenizers do."""

    def apply_chat_template(self, messages, *, chat_template, tokenize, **options):
        assert not tokenize
        texts, _ = render_jinja_template([messages], chat_template=chat_template, **options)
        return texts[0]


CHATS = [
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for c in m['content'] %}{{ '<image>' if c.type == 'image' else c['text'] }}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "{{ bos_token }}{% for m in messages %}{% if loop.index0 > 1 %}{% break %}{% endif %}[{{ m.role }}]"
    "{% generation %}x{% endgeneration %}{% endfor %}{{ messages|tojson(indent=1) }}{{ tools is none }}",
    "{% set ns = namespace(last=0) %}{% for m in messages[::-1] %}{% if m.role == 'assistant' %}"
    "{{ m.content.split('</think>')[-1].lstrip('\n') }}{% endif %}{% endfor %}{{ strftime_now('%Y')|length }}",
]


@pytest.mark.parametrize("source", CHATS)
def test_chat_templates_say_what_they_say_in_transformers(source):
    options = {"chat_template": source, "add_generation_prompt": True, "bos_token": "<s>"}
    expected = Tokenizer().apply_chat_template(MESSAGES, tokenize=False, **options)
    assert apply_chat_template(Tokenizer(), MESSAGES, **options) == expected


@pytest.mark.parametrize("name", ["'x' * 10**9", "lists in lists"])
def test_chat_templates_have_limits(name):
    with pytest.raises(LimitError):
        apply_chat_template(Tokenizer(), MESSAGES, chat_template=ENDLESS[name])


def test_a_chat_template_prints_the_same_date_on_every_day():
    llama3 = (
        "{% if not date_string is defined %}{% if strftime_now is defined %}"
        "{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{% endif %}"
        "Today Date: {{ date_string }}"
    )
    shown = apply_chat_template(Tokenizer(), MESSAGES, chat_template=llama3)
    assert shown == "Today Date: 26 Jul 2024"
    options = {"chat_template": llama3, "date_string": "30 Nov 2026"}
    assert apply_chat_template(Tokenizer(), MESSAGES, **options) == "Today Date: 30 Nov 2026"
    clock = "{{ strftime_now('%Y-%m-%d %H:%M:%S') }}"
    shown = apply_chat_template(Tokenizer(), MESSAGES, chat_template=clock)
    assert shown == "2024-07-26 00:00:00"


def test_what_a_chat_template_raises_is_passed_on():
    source = "{{ raise_exception('no system message') }}"
    with pytest.raises(TemplateError, match="no system message"):
        apply_chat_template(Tokenizer(), MESSAGES, chat_template=source)
    with pytest.raises(LimitError):
        apply_chat_template(
            Tokenizer(), MESSAGES, chat_template="{{ strftime_now('%999999999Y') }}"
        )
