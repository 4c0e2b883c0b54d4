"""Hostile model folders, 10,000 with `--fuzz 1`: tokenizer files, chat templates, generation settings and links.

Each works or is refused in a sentence; nothing outside of its folder is read, and what loops or grows is ended.
"""

import itertools
import json
import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from offload.checkpoint.border import check_border
from offload.checkpoint.checkpoint import Checkpoint
from profiles.errors import BadInputError
from runtime.config import SamplingParams
from runtime.model.generation_config import FILE_NAME, read_generation_config
from runtime.prompts.prompt_file import Message, PromptRequest
from runtime.tokenizer.box import BoxLimits, Tokenizer, TokenizerBox
from tests.support.damage import ODD_VALUES, damage_bytes, damage_value, peak_bytes, to_json
from tests.support.model_factory import TINY_VOCAB_SIZE, save_tiny_model, save_tiny_tokenizer

MAX_GROWTH_BYTES = 2**30
LIBRARIES_BYTES = 3 * 10**8
"""What the tokenizer's process takes without a model."""
PROMPTS = ("the cat", "é🙂 <|user|></s>\n\t", "a" * 300)
TURNS = (
    Message("system", "be brief"),
    Message("user", "the cat"),
    Message("assistant", "in the end"),
    Message("user", "a <b> & 'c'"),
)
ASKED = PromptRequest(id="asked", messages=TURNS)
CONTINUED = PromptRequest(id="continued", messages=TURNS[:3], is_continued=True)
Case = tuple[Path, bytes]
Try = Callable[[], object]


def outcome(attempt: Try) -> str:
    try:
        attempt()
    except BadInputError as error:
        message = str(error)
        assert message.isprintable() and len(message) < 1000, message
        return type(error).__name__
    return "works"


@pytest.fixture(scope="module")
def box() -> Iterator[TokenizerBox]:
    before_bytes = children_bytes()
    box = TokenizerBox(BoxLimits(load_seconds=2.0, use_seconds=0.5))
    yield box
    box.close()
    assert children_bytes() <= max(before_bytes, LIBRARIES_BYTES + MAX_GROWTH_BYTES)


def children_bytes() -> int:
    """The most that a child of this process ever took."""
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_tokenizer(tmp_path / "model")


@pytest.fixture
def stride(pytestconfig: pytest.Config) -> int:
    return int(pytestconfig.getoption("fuzz"))


def use(folder: Path, box: TokenizerBox) -> None:
    """Everything that a session does with a tokenizer; what one prompt costs does not cost the next."""
    tokenizer = Tokenizer(folder, box)
    for prompt in PROMPTS:
        outcome(lambda prompt=prompt: tokenizer.encode(prompt))
    outcome(lambda: tokenizer.encode_conversation(ASKED))
    outcome(lambda: tokenizer.encode_conversation(CONTINUED))
    outcome(lambda: decode(tokenizer))
    outcome(lambda: tokenizer.name(5))


def decode(tokenizer: Tokenizer) -> None:
    answer = tokenizer.begin_answer(("\n\n",), behind=[5, 6])
    for token_ids in ([7, 8, 9], [2**31 - 1], [1, 2, 40, 41, 42]):
        answer.add(token_ids)
    answer.finish()


def run_cases(cases: Iterator[Case], attempt: Try, *, stride: int) -> Counter[str]:
    """Try one case in `stride`: the file gets its damaged bytes meanwhile."""
    outcomes: Counter[str] = Counter()
    start_bytes = peak_bytes()
    for file, damaged in itertools.islice(cases, 0, None, stride):
        sound = file.read_bytes() if file.exists() else None
        file.write_bytes(damaged)
        try:
            outcomes[outcome(attempt)] += 1
        except Exception as error:
            raise AssertionError(f"{type(error).__name__} for {file.name}: {damaged[:2000]!r}") from error
        finally:
            if sound is None:
                file.unlink()
            else:
                file.write_bytes(sound)
    assert peak_bytes() - start_bytes < MAX_GROWTH_BYTES
    return outcomes


PATTERNS: tuple[Any, ...] = ({"String": ""}, {"String": "a"}, {"Regex": ""}, {"Regex": "(a*)*b"}, {"Regex": "("}, {})
NORMALIZERS: tuple[Any, ...] = (
    *({"type": kind} for kind in ("NFC", "NFKD", "Lowercase", "Nmt", "StripAccents", "ByteLevel", "Unknown")),
    *({"type": "Replace", "pattern": pattern, "content": "aa"} for pattern in PATTERNS),
    {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 200},
    *({"type": "Prepend", "prepend": text} for text in ("", "▁", "x" * 10**6)),
    *({"type": "Precompiled", "precompiled_charsmap": text} for text in ("", "AAAA", "/////w==", "not base64")),
    {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": 1},
    {"type": "Strip", "strip_left": True, "strip_right": True},
)
BEHAVIORS = ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")
PRE_TOKENIZERS: tuple[Any, ...] = (
    *({"type": kind} for kind in ("Whitespace", "WhitespaceSplit", "BertPreTokenizer", "UnicodeScripts")),
    *(
        {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": bool(len(behavior) % 2)}
        for pattern in PATTERNS
        for behavior in BEHAVIORS
    ),
    *({"type": "Metaspace", "replacement": sign, "prepend_scheme": "always"} for sign in ("▁", "", "xx", "é")),
    *({"type": "Digits", "individual_digits": value} for value in (True, 3)),
    *({"type": "FixedLength", "length": length} for length in (0, 1, 2**63)),
    *({"type": "Punctuation", "behavior": "Isolated"}, {"type": "CharDelimiterSplit", "delimiter": ""}),
    *({"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": use} for use in (True, False)),
)
DECODERS: tuple[Any, ...] = (
    *({"type": kind} for kind in ("ByteFallback", "Fuse", "ByteLevel", "Metaspace", "CTC", "WordPiece")),
    *({"type": "Replace", "pattern": pattern, "content": "aa" * 50} for pattern in PATTERNS),
    *(
        {"type": "Strip", "content": sign, "start": start, "stop": 2**62}
        for sign in ("a", "", "aa")
        for start in (0, 9)
    ),
    {"type": "BPEDecoder", "suffix": ""},
    {"type": "WordPiece", "prefix": "", "cleanup": True},
)
PROCESSORS: tuple[Any, ...] = (
    {"type": "BertProcessing", "sep": ["</s>", 2**32], "cls": ["<s>", 1]},
    {"type": "RobertaProcessing", "sep": ["", 0], "cls": ["", 0], "trim_offsets": True, "add_prefix_space": False},
    {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}},
    {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "x", "type_id": 0}}] * 3,
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"x": {"id": "x", "ids": [2**31] * 99, "tokens": ["x"] * 99}},
    },
)
MODELS: tuple[Any, ...] = (
    *({"type": kind, "vocab": {"a": 0}} for kind in ("WordLevel", "WordPiece", "BPE", "Unigram")),
    *({"type": "Unigram", "unk_id": unk, "vocab": [["a", 0.0], ["", -1e300]]} for unk in (None, 0, 7, -1)),
    *({"type": "BPE", "vocab": {"a": index}, "merges": [["a", "a"]]} for index in (0, 2**31, -1)),
    {"type": "BPE", "vocab": {"": 0}, "merges": [], "dropout": 0.0, "byte_fallback": True},
    {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [], "continuing_subword_prefix": "y" * 10**5},
    {"type": "WordPiece", "vocab": {"a": 0, "[UNK]": 1}, "unk_token": "x", "max_input_chars_per_word": 0},
)
PARTS = {
    "normalizer": NORMALIZERS,
    "pre_tokenizer": PRE_TOKENIZERS,
    "decoder": DECODERS,
    "post_processor": PROCESSORS,
    "model": MODELS,
    "truncation": ({"max_length": 0, "strategy": "LongestFirst", "stride": 2**63, "direction": "Left"}, {}, 3),
    "padding": ({"strategy": {"Fixed": 2**40}, "direction": "Left", "pad_id": 0, "pad_type_id": 0, "pad_token": ""}, 1),
}
SEQUENCES = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}


def part_cases(file: Path, source: random.Random, num_cases: int) -> Iterator[Case]:
    """One or two parts of a tokenizer replaced by odd ones, and by sequences of them."""
    sound = json.loads(file.read_bytes())
    for _ in range(num_cases):
        damaged = dict(sound)
        for key in source.sample(sorted(PARTS), source.choice((1, 1, 2))):
            part = source.choice(PARTS[key])
            if key in SEQUENCES and source.random() < 0.4:
                parts = [source.choice(PARTS[key]) for _ in range(source.choice((0, 1, 2, 6)))]
                part = {"type": "Sequence", SEQUENCES[key]: parts}
            elif source.random() < 0.2:
                part = damage_value(part, source) if isinstance(part, dict) else part
            damaged[key] = part
        yield file, to_json(damaged)


def json_cases(file: Path, source: random.Random, num_cases: int) -> Iterator[Case]:
    raw = file.read_bytes()
    for index in range(num_cases):
        yield file, damage_bytes(raw, source) if index % 5 == 0 else to_json(damage_value(json.loads(raw), source))


CONFIG_KEYS = (
    *("added_tokens_decoder", "additional_special_tokens", "auto_map", "backend", "bos_token", "chat_template"),
    *("clean_up_tokenization_spaces", "do_lower_case", "eos_token", "extra_special_tokens", "fast_tokenizer_files"),
    *("from_slow", "gguf_file", "init_inputs", "legacy", "max_length", "merges", "merges_file", "model_max_length"),
    *(
        "model_specific_special_tokens",
        "name_or_path",
        "pad_token",
        "padding_side",
        "post_processor",
        "processor_class",
    ),
    *("special_tokens_map_file", "split_special_tokens", "spm_file", "stride", "tokenizer_class", "tokenizer_file"),
    *("tokenizer_object", "truncation_side", "unk_token", "use_default_system_prompt", "vocab", "vocab_file"),
)
CONFIG_VALUES: tuple[Any, ...] = (
    *(
        "../secret.txt",
        "/etc/passwd",
        "tokenizer.json",
        "<s>",
        "LlamaTokenizer",
        "PreTrainedTokenizerFast",
        "T5Tokenizer",
    ),
    *(
        ["../tokenizer.9.json"],
        ["tokenizer.4.0.0.json"],
        {"a": "b"},
        {"default": "x"},
        [{"name": "a", "template": "x"}],
    ),
    *({"__type": "AddedToken", "content": "x"}, {"0": {"content": "x"}}, {"content": 3}, ["<s>"] * 999),
)


def config_cases(folder: Path, source: random.Random) -> Iterator[Case]:
    """Every setting of a tokenizer with every odd value, in each of the files that transformers merges."""
    names = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    values = (*ODD_VALUES, *CONFIG_VALUES)
    for key, value in itertools.product(CONFIG_KEYS, values):
        file = folder / source.choice((names[0], *names))
        settings = json.loads(file.read_bytes()) if file.exists() else {}
        yield file, to_json({**settings, key: value})


EXPRESSIONS = """
messages; messages[0]; messages[0]['content']; x; missing; none; true; 1; ''; []; {}; loop; self; caller(); f(1)
bos_token; eos_token; add_generation_prompt; range(9); range(10 ** 9); range(0); namespace(a=1); dict(a=1); cycler('a')
joiner(', '); lipsum(n=2); strftime_now('%Y'); strftime_now('%'); raise_exception('no'); raise_exception(messages)
messages | tojson; messages | tojson(indent=9); '%s' % messages; 'a' ~ messages; 1 / 0; 10 ** 999999; 2 ** 63
''.__class__; messages.append(1); messages | map('length') | list; messages | groupby('role'); x | attr('__init__')
messages | batch(0) | list; messages | sum; messages | sort; 'a' | wordwrap(0); '{0}' | format(1); messages | random
'{0.__class__}'.format(1); 3 | round(10 ** 9); messages | tojson(indent=-1); messages | slice(0) | list; 'a'.encode(1)
messages[-9]; messages[0].missing.more; messages[0] | dictsort; 'a' | indent(-1); 1.5 | int(base=99)
""".replace("\n", ";")
HEAVY = """
'x' * 4000000000; messages | tojson(indent=999999)
lipsum(n=messages | length * 99999); range(99999) | map('string') | join * 99999; '%999999999d' % 1
messages * 99999999; 'a' | center(messages | length * 900000000); 'a' | indent(messages | length * 10 ** 9)
9 ** 9 ** (messages | length * 3)
""".replace("\n", ";")
BLOCKS = """
{{ E }}; {% if E %}B{% endif %}; {% if E %}B{% elif E %}B{% else %}B{% endif %}; {% set x = E %}B; text; {# B #}
{{ loop(E) }}; {% for x in E %}B{% endfor %}; {% for x in messages %}B{% endfor %}
{% for x in [[1]] recursive %}B{% endfor %}; {% break %}; {% macro f(y) %}B{% endmacro %}{{ f(E) }}
{% call f(E) %}B{% endcall %}; {% filter upper %}B{% endfilter %}; {%- endif -%}; {% include E %}; {% extends E %}
{% import E as z %}; {% block q %}B{% endblock %}; {% raw %}B{% endraw %}; {% do E %}
{% generation %}B{% endgeneration %}; {% with x = E %}B{% endwith %}; {% autoescape E %}B{% endautoescape %}
{% set ns = namespace(v=E) %}{% set ns.v = E %}B
{% for a in range(99) %}{% for b in range(9) %}B{% endfor %}{% endfor %}
""".replace("\n", ";")


def template(source: random.Random, depth: int) -> str:
    """Blocks in blocks, with expressions in them; one in three hundred of these is meant to take for ever."""
    pieces = []
    for sign in source.choice(list(filter(str.strip, BLOCKS.split(";")))).strip() if depth else "{{ E }}":
        if sign == "B":
            pieces.append(template(source, depth - 1))
        elif sign == "E":
            expressions = HEAVY if source.random() < 1 / 300 else EXPRESSIONS
            pieces.append(source.choice(list(filter(str.strip, expressions.split(";")))).strip())
        else:
            pieces.append(sign)
    return "".join(pieces)


def template_cases(file: Path, source: random.Random, num_cases: int) -> Iterator[Case]:
    for index in range(num_cases):
        text = "".join(template(source, source.choice((0, 1, 2, 3))) for _ in range(source.choice((1, 1, 2, 4))))
        raw = text.encode()
        yield file, damage_bytes(raw, source) if index % 8 == 0 else raw


def test_damaged_tokenizer_files(folder: Path, box: TokenizerBox, stride: int) -> None:
    outcomes: Counter[str] = Counter()
    for name, num_cases in (("tokenizer.json", 1800), ("tokenizer_config.json", 500)):
        cases = json_cases(folder / name, random.Random(1), num_cases)
        outcomes += run_cases(cases, lambda: use(folder, box), stride=stride)
    assert outcomes.total() >= 2300 // stride and outcomes["CheckpointError"] and outcomes["works"]


def test_tokenizers_of_odd_parts(folder: Path, box: TokenizerBox, stride: int) -> None:
    cases = part_cases(folder / "tokenizer.json", random.Random(2), 1800)
    outcomes = run_cases(cases, lambda: use(folder, box), stride=stride)
    assert outcomes.total() >= 1800 // stride and outcomes["CheckpointError"] and outcomes["works"]


def test_every_setting_of_a_tokenizer_with_every_odd_value(folder: Path, box: TokenizerBox, stride: int) -> None:
    (folder.parent / "secret.txt").write_text('{"secret": 0}')
    outcomes = run_cases(config_cases(folder, random.Random(3)), lambda: use(folder, box), stride=stride)
    assert outcomes.total() >= 1800 // stride and outcomes["CheckpointError"] and outcomes["works"]


def test_templates_of_every_kind(folder: Path, box: TokenizerBox, stride: int) -> None:
    tokenizer = [Tokenizer(folder, box)]

    def ask() -> None:
        tokenizer[0] = tokenizer[0].beside(folder)
        tokenizer[0].encode_conversation(ASKED)

    outcomes = run_cases(template_cases(folder / "chat_template.jinja", random.Random(4), 2500), ask, stride=stride)
    assert outcomes.total() >= 2500 // stride and outcomes["OptionError"] and outcomes["works"]
    assert tokenizer[0].encode("the cat")


GENERATION_VALUES = {
    **{
        name: 5
        for name in ("eos_token_id", "pad_token_id", "bos_token_id", "max_new_tokens", "min_new_tokens", "top_k")
    },
    **{"temperature": 0.7, "top_p": 0.8, "repetition_penalty": 1.05, "do_sample": True, "min_p": 0.1, "max_length": 99},
    **{"suppress_tokens": [3, 4], "bad_words_ids": [[3], [4, 5]], "no_repeat_ngram_size": 3, "stop_strings": ["a"]},
    **{"forced_bos_token_id": 3, "forced_eos_token_id": [4], "begin_suppress_tokens": [5], "num_beams": 1},
}


def generation_cases(file: Path, source: random.Random, num_cases: int) -> Iterator[Case]:
    """Every setting with every odd value; then several sound settings at once, damaged."""
    for key, value in itertools.product(GENERATION_VALUES, ODD_VALUES):
        yield file, to_json({**GENERATION_VALUES, key: value})
        yield file, to_json({key: [value, 3]})
    for index in range(num_cases):
        raw = to_json(GENERATION_VALUES)
        yield file, damage_bytes(raw, source) if index % 3 == 0 else to_json(damage_value(GENERATION_VALUES, source))


def test_generation_settings_of_every_kind(folder: Path, stride: int) -> None:
    def read() -> None:
        for choice in ("plain", "auto"):
            settings = read_generation_config(folder, choice, vocab_size=TINY_VOCAB_SIZE)
        settings.choices(SamplingParams(), num_prompt_tokens=9)

    cases = generation_cases(folder / FILE_NAME, random.Random(5), 600)
    outcomes = run_cases(cases, read, stride=stride)
    assert outcomes.total() >= 1600 // stride and outcomes["CheckpointError"] and outcomes["works"]


NAMES = (
    *(
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
        "generation_config.json",
        "LICENSE",
    ),
    *("chat_template.jinja", "special_tokens_map.json", "additional_chat_templates", "x.jinja", "vocab.json", "other"),
)
TARGETS = (
    *(
        "../secret.json",
        "../outside",
        "../outside/tokenizer.json",
        "/dev/zero",
        "/dev/null",
        "/proc/self/mem",
        "/",
        "..",
    ),
    *(
        "config.json",
        "tokenizer.json",
        ".",
        "missing",
        "../missing",
        "other",
        "LICENSE",
        "../model/config.json",
        "x" * 300,
    ),
)


def leads_out(folder: Path) -> bool:
    """Whether a link in the folder, or in its templates, leads to what lies outside, by the system's own account."""
    root = os.path.realpath(folder)
    paths = list(folder.iterdir())
    with suppress(OSError):  # no folder, or a link that no system follows
        paths += (folder / "additional_chat_templates").iterdir()
    return any(not f"{os.path.realpath(path)}/".startswith(f"{root}/") for path in paths)


def test_links_of_every_kind(tmp_path: Path, box: TokenizerBox, stride: int) -> None:
    """What lies outside has a vocabulary of its own: it would be seen."""
    source = random.Random(6)
    sound = save_tiny_tokenizer(save_tiny_model("llama", tmp_path / "sound", num_hidden_layers=1))
    save_tiny_tokenizer(tmp_path / "outside", vocab_size=77)
    (tmp_path / "secret.json").write_text('{"model_type": "llama", "chat_template": "secret"}')
    folder, outcomes = tmp_path / "model", Counter[str]()
    for _ in range(600 // stride):
        shutil.copytree(sound, folder)
        for _ in range(source.choice((1, 1, 2, 3))):
            path = folder / source.choice(("", "", "", "additional_chat_templates")) / source.choice(NAMES)
            if path.parent.is_dir() and not path.parent.is_symlink():
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
                os.mkfifo(path) if source.random() < 0.1 else path.symlink_to(source.choice(TARGETS))
        borders = outcome(lambda: check_border(folder))
        ways = [outcome(lambda: Checkpoint.open(folder)), outcome(lambda: use(folder, box))]
        if leads_out(folder):
            assert {borders, *ways} == {"CheckpointError"}, sorted(folder.iterdir())
        if ways[1] == "works":
            assert len(Tokenizer(folder, box)) == TINY_VOCAB_SIZE
        outcomes.update(ways)
        shutil.rmtree(folder)
    assert outcomes["CheckpointError"] and outcomes["works"]
