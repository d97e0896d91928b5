"""Prints docs/options.md, which is made from `GenerationOptions`."""

from audiolitefocus.options import DEFAULTS, OPTIONS, flag_of
from audiolitefocus.validation import Choice, Number

HEAD = """# Options

Every choice of one call is a field of `GenerationOptions`. This page is made from it by
`python -m scripts.docs.options > docs/options.md`.

```python
pipe("a bell over rain", num_inference_steps=25, sampler="dpm++")  # fields by name
options = GenerationOptions(num_inference_steps=25, sampler="dpm++")
pipe("a bell over rain", options=options, seed=7)  # these options, and a change
```

```sh
audiolitefocus generate "a bell over rain" --steps 25 --sampler dpm++ --seed 7
```

A line of a prompts file takes them by either name: `{"prompt": "rain", "steps": 25, "seed": 7}`.
The JSON beside a clip has them by field name. In Python a recording may also be samples `(n,)` at
the model's rate, `inpaint` two numbers, `negative_prompt` a list with a text for each prompt, and
`attention` a `LiteFocus` or `TokenMerging`.
"""


def page() -> str:
    """The page: a table for each group of options."""
    groups: dict[str, list[str]] = {}
    for name, option in OPTIONS.items():
        groups.setdefault(option.group, []).append(name)
    parts = [HEAD]
    for caption, names in groups.items():
        rows = "\n".join(map(_row, names))
        head = "| field | flag | default | allowed | meaning |\n|---|---|---|---|---|\n"
        parts.append(f"## {caption}\n\n{head}{rows}\n")
    return "\n".join(parts)


def _row(name: str) -> str:
    option, default = OPTIONS[name], DEFAULTS[name]
    shown = "" if default is None else f"`{default}`"
    return f"| `{name}` | `{flag_of(name)}` | {shown} | {_allowed(option.rule)} | {option.help} |"


def _allowed(rule) -> str:
    if isinstance(rule, Choice):
        return ", ".join(f"`{name}`" for name in rule.names)
    return str(rule) if isinstance(rule, Number) else f"`{rule.metavar}`"


if __name__ == "__main__":
    print(page(), end="")
