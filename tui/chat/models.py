"""What the picker chooses from: the models that are on this machine, and how each would fit.

Models lie in the hub's cache, in our own cache, in those of ollama and LM Studio, and where they were used before; a
model is a folder or a GGUF file. Listing looks at names and sizes only. Whether a model fits is for a plan to say,
which needs torch and measures the machine for a second or two: a short-lived process makes the plans. Loads no model
and asks nothing of the network.
"""

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from offload.errors import BudgetError
from offload.units import format_bytes
from profiles.child_process import child_command, child_environment, own_streams
from profiles.errors import BadInputError, OverstoryError
from profiles.files import read_regular_file
from profiles.steps import finish
from runtime.config import EngineConfig, parse_speed
from runtime.engine.demo_model import DEMO_MODEL_NAME, DOWNLOAD_BYTES
from runtime.engine.model_folders import (
    gguf_file_of,
    gguf_files_below,
    model_name,
    models_of_others,
    weight_files,
)
from tui.chat.commands.slash import as_typed_here, paths_from
from tui.chat.engine.child_process import lines_of, step_back, write_line
from tui.environment import cache_folder, prepare_libraries
from tui.terminal_text import one_line

if TYPE_CHECKING:
    from runtime.fit.machine import Machine
    from runtime.fit.plan_report import PlanReport

_MAX_CONFIG_BYTES = 1 << 25
DEMO_TARGET = ""
"""What the settings say for the demo model."""


@dataclass(frozen=True, slots=True)
class ListedModel:
    """One row of the list."""

    target: str
    """What a session is opened on: a folder, a GGUF file or any other spelling; DEMO_TARGET is the demo model."""
    name: str
    """What a person calls it."""
    folder: str = ""
    """Where it lies on this machine, a folder or a GGUF file; empty where that is not known."""
    weight_bytes: int = 0
    """Size of its weights, if it lies here."""
    is_recent: bool = False
    """Whether it was used before."""
    has_chat_template: bool = True
    """Whether it was made for conversations; one that was not writes on from a text. True where that is not known."""


def find_models(
    recent: Sequence[str], *, own_cache: Path | None = None, hub_cache: Path | None = None
) -> tuple[ListedModel, ...]:
    """Return every model once: those of the targets `recent`, in order, then those of the caches by name.

    The demo model is always there. Without `hub_cache` the hub's library says where its cache is. What is missing or
    may not be read is left out.
    """
    own_cache = own_cache or cache_folder()
    cached = [*_own_models(own_cache), *_hub_models(hub_cache), *_models_of_others()]
    models: dict[str, ListedModel] = {}  # by their folders, whatever links lead there
    for model in sorted(cached, key=lambda each: (each.name.lower(), each.folder)):
        models.setdefault(os.path.realpath(model.folder), model)
    demo_folder = own_cache / DEMO_MODEL_NAME
    demo = models.get(os.path.realpath(demo_folder), ListedModel(DEMO_TARGET, DEMO_MODEL_NAME))
    word = "demo" if demo.folder else f"demo, {DOWNLOAD_BYTES / 1e6:.0f} MB to download"
    models[os.path.realpath(demo_folder)] = replace(demo, target=DEMO_TARGET, name=f"{demo.name} ({word})")
    by_name = {model.name: folder for folder, model in models.items()}
    by_target = {model.target: folder for folder, model in models.items()}
    used = []
    for target in dict.fromkeys(recent):
        folder = demo_folder if target == DEMO_TARGET else Path(os.path.expanduser(target))  # noqa: PTH111 - as in actions
        known = models.pop(os.path.realpath(folder), None) or models.pop(by_target.get(target, ""), None)
        known = known or _model_of(folder) or models.pop(by_name.get(target, ""), None) or ListedModel(target, target)
        used.append(replace(known, target=target, is_recent=True))
    return (*used, *models.values())


def _own_models(own_cache: Path) -> Iterator[ListedModel]:
    for folder in own_cache.glob("*"):
        if ".partial-" not in folder.name and (model := _model_of(folder)) is not None:
            yield model


def _hub_models(hub_cache: Path | None) -> Iterator[ListedModel]:
    """Yield each model of the hub's cache in the snapshot that `main` names, or in the last that changed."""
    from huggingface_hub import scan_cache_dir  # here, since it takes a moment and the picker is open by now
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir(hub_cache).repos
    except (CacheNotFound, OSError, ValueError):  # none was made yet, it may not be read, or a file is in its place
        return
    for repository in repositories:
        if repository.repo_type != "model":
            continue
        by_age = sorted(repository.revisions, key=lambda each: ("main" in each.refs, each.last_modified))
        snapshots = [model for each in by_age if (model := _model_of(each.snapshot_path)) is not None]
        yield from snapshots[-1:]
        files = [tuple(map(str, gguf_files_below(each.snapshot_path))) for each in by_age]
        for file in next(filter(None, reversed(files)), ()):
            if (model := _model_of(Path(file))) is not None:
                yield model


def _models_of_others() -> Iterator[ListedModel]:
    """Yield what ollama and LM Studio hold."""
    for found in models_of_others():
        yield ListedModel(found.spelling, found.spelling, str(found.file), found.num_bytes)


def _model_of(folder: Path) -> ListedModel | None:
    """Return the model in a folder with a config.json and weights, all of them there, or in a GGUF file; else None."""
    try:
        if (file := gguf_file_of(folder)) is not None:
            num_bytes = sum(part.stat().st_size for part in weight_files(file))
            return ListedModel(str(file), model_name(file), str(file), num_bytes)
        sizes = [file.stat().st_size for file in folder.glob("*.safetensors")]  # of what the hub's links point to
        is_model = bool(sizes) and (folder / "config.json").exists()
    except OSError:  # not ours to read, or a link to a file that was deleted
        return None
    if not is_model:
        return None
    named = ListedModel(str(folder), model_name(folder), str(folder), sum(sizes))
    return replace(named, has_chat_template=has_chat_template(folder))


def models_below(typed: str) -> tuple[ListedModel, ...]:
    """Return the models in a folder that is typed, itself among them, or those beside it whose names begin as typed."""
    if not is_path(typed):
        return ()
    path = Path(os.path.expanduser(typed))  # noqa: PTH111 - which leaves the home of an unknown user as it is
    children = [f"{typed.rstrip('/')}/" if path.is_dir() else "", typed]
    folders = [path, *(Path(os.path.expanduser(each)) for start in children for each in paths_from(start))]  # noqa: PTH111
    found = [model for folder in folders if (model := _model_of(folder)) is not None]
    return tuple({os.path.realpath(model.folder): model for model in reversed(found)}.values())[::-1]


def is_path(typed: str) -> bool:
    """Return whether what is typed can only be a path: hub names have one slash, which is neither first nor last."""
    if typed.startswith(("ollama:", "lmstudio:")):
        return False
    return typed.startswith(("/", "~", "./", "../")) or typed.endswith("/") or typed.count("/") > 1


def has_chat_template(folder: Path) -> bool:
    """Return whether a model's folder says how a conversation is written down; True if that cannot be told."""
    if any((folder / name).exists() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    try:
        written = json.loads(read_regular_file(folder / "tokenizer_config.json", max_bytes=_MAX_CONFIG_BYTES))
    except FileNotFoundError:
        return False
    except (OSError, ValueError, RecursionError):
        return True
    return not isinstance(written, dict) or bool(written.get("chat_template"))


def refuse_no_model(name: str) -> None:
    """Raise BadInputError for a path where no model lies; what may be another spelling is for the engine to find."""
    if not name.startswith(("/", "~", "./", "../")):
        return
    folder = Path(os.path.expanduser(name))  # noqa: PTH111 - which leaves the home of an unknown user as it is
    with suppress(OSError):  # which the engine says better
        if not (folder / "config.json").exists() and gguf_file_of(folder) is None:
            what = "holds no config.json, so it is no model folder" if folder.is_dir() else "is no folder"
            what = "is no GGUF file" if folder.is_file() else what
            raise BadInputError(
                f"{one_line(name)} {what}; give the folder of a model, a GGUF file, or owner/name on the hub"
            )


Fit = Literal["resident", "streams", "does not fit", "unusable", "unknown"]


@dataclass(frozen=True, slots=True)
class FitEstimate:
    """What to expect of one model on this machine."""

    folder: str
    fit: Fit
    """Every layer stays on the device; some cross a link in every pass; too large; no model for us; not known."""
    seconds_per_token: float | None
    """Predicted by the plan; None where it does not run."""
    sentence: str
    """All of it in words."""


async def estimate_fits(
    folders: Sequence[str | Path],
    config: EngineConfig,
    *,
    command: Sequence[str] = child_command("tui.chat.models"),
) -> AsyncGenerator[FitEstimate, None]:
    """Yield an estimate for each folder as it is made, in order; the target of `config` is not looked at.

    Closing the iteration ends the process that makes them. Every folder gets an estimate, if only an unknown one.
    """
    waiting = [str(folder) for folder in folders]
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=child_environment(HF_HUB_OFFLINE="1"),
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(json.dumps((waiting, asdict(config))).encode() + b"\n")
        async for line in process.stdout:
            estimate = FitEstimate(**json.loads(line))
            waiting.remove(estimate.folder)
            yield estimate
    finally:
        process.stdin.close()
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    for folder in waiting:
        yield FitEstimate(folder, "unknown", None, "no estimate: the planner ended early")


def make_estimates(folders: Sequence[str], config: EngineConfig) -> Iterator[FitEstimate]:
    """Plan for each folder, in the child; the machine is measured once, with the first that is a model."""
    from runtime.engine.draft_choice import with_found_draft
    from runtime.fit.plan import plan_with_profiles
    from runtime.fit.plan_question import find_machine, resolve_question
    from runtime.fit.request import MachineRequest, PlanRequest

    machine: Machine | None = None
    limits = MachineRequest(
        device=config.device,
        device_memory_bytes=config.device_memory_bytes,
        host_memory_bytes=config.host_memory_bytes,
        link=None if config.link is None else parse_speed(config.link, "link"),
        disk=None if config.disk_link is None else parse_speed(config.disk_link, "disk_link"),
    )
    for folder in folders:
        try:
            request = PlanRequest(
                target=folder,
                draft=config.draft,
                draft_format=config.draft_format,
                kv_cache=config.kv_cache,
                kv_format=config.kv_format,
                pack=config.pack,
                context_tokens=config.context_tokens,
                tree="auto" if config.is_plain else config.tree,
            )
            question = resolve_question(request)
            if machine is None:
                machine = finish(find_machine(limits, cache_folder=cache_folder(), model_folder=Path(folder)))
            question = with_found_draft(question, machine, may_load_tokenizers=False)
            report = plan_with_profiles(question, machine, cache_folder=cache_folder())
            yield estimate_of(folder, report, has_open_draft=config.draft == "auto")
        except BudgetError as error:
            yield FitEstimate(folder, "does not fit", None, as_typed_here(one_line(str(error))))
        except OverstoryError as error:
            yield FitEstimate(folder, "unusable", None, as_typed_here(one_line(str(error))))


def estimate_of(folder: str, report: "PlanReport", *, has_open_draft: bool = False) -> FitEstimate:
    """Return what the picker shows of a plan; where the draft is open there is none for layers that stay in memory."""
    plan, plain = report.main, report.plain
    if has_open_draft and not isinstance(plain, BudgetError) and not plain.streams:
        plan = plain
    placed = plan.placement
    seconds = plan.seconds_per_token
    if not plan.streams:
        sentence = f"stays in memory whole ({format_bytes(placed.device_bytes)}), about {1 / seconds:.3g} tokens/s"
        return FitEstimate(folder, "resident", seconds, sentence)
    source = ", from disk," if placed.disk_bytes else ""
    sentence = f"streams {format_bytes(placed.streamed_bytes)}{source} in every pass, about {seconds:.3g} s/token"
    return FitEstimate(folder, "streams", seconds, sentence)


def main() -> None:
    """Run the child: one line with the question comes, one line goes for each folder."""
    requests, reports = own_streams()
    step_back()
    prepare_libraries()
    folders, config = json.loads(next(lines_of(requests)))
    for estimate in make_estimates(folders, EngineConfig(**config)):
        write_line(reports, json.dumps(asdict(estimate)).encode() + b"\n")
    os._exit(0)  # the system takes all memory back at once


if __name__ == "__main__":
    main()
