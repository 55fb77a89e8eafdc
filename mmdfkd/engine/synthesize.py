"""Runs the source of a distillation config and writes what it makes."""

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import DefaultScope
from torch import Tensor

from mmdfkd.distillers import DataFreeDistiller
from mmdfkd.registry import DATASETS, MODELS
from mmdfkd.synthesis import MixtureSource, SyntheticSource, frozen
from mmdfkd.synthesis.sources.banked import BankedSource
from mmdfkd.utils.checkpoint import read_checkpoint, sha256
from mmdfkd.utils.key_report import load_strict
from mmdfkd.utils.run_files import project_commit

from .classes import check_classes, class_names_of, declared_classes, declared_metainfo
from .hooks.distill import DistillHook, seed_everything
from .image_sets import ClassFolders, CocoSet, ImageSet, write_text_at_once

FACTS = 'synthesis.json'
# Of which a set that was made before they were written down says nothing.
_LATER = ('teacher_sha256', 'dataset', 'classes')
_STATE, _RECORDS, _SETTINGS = 'state.pth', 'records.jsonl', 'settings.json'


@dataclass
class Synthesis:
    """The source of a config with its networks, ready to be stepped.

    Attributes:
        distiller: Of the config; the student is as at the start of a run.
        dataset: The training dataset, which the items come from.
        seed: Of everything random.
        batch: Images of a step.
        learns: Whether the source spends a budget in some steps, so that later images depend on
            earlier steps.
    """

    distiller: DataFreeDistiller
    dataset: Any
    seed: int
    batch: int
    learns: bool

    @classmethod
    def of(
        cls, cfg: Config, folder: Path | None, seed: int | None = None, batch: int | None = None
    ) -> 'Synthesis':
        """Build it; nothing is loaded yet.

        Args:
            cfg (Config): Of a distillation run.
            folder (Path, optional): Where the source may keep images; None for memory.
            seed (int, optional): The config's by default.
            batch (int, optional): Images of a step; the config's batch size by default.

        Raises:
            TypeError: If the config is of something else.
            ValueError: If its datasets have not the teacher's classes.
        """
        kind = str(cfg.get('model', {}).get('type'))
        if not kind.endswith('DataFreeDistiller'):
            raise TypeError(
                f'{cfg.filename or "The config"} has no source of images: its model is a {kind}, '
                'not an mmdfkd.DataFreeDistiller.'
            )
        if seed is None:
            seed = (cfg.get('randomness') or {}).get('seed') or 0
        seed_everything(seed, 0, 0)
        distiller = MODELS.build(cfg.model).to(get_device())
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
        count = distiller.teacher.adapter.num_classes
        known = declared_classes(distiller.teacher.cfg, count)
        metas = dict(
            training=getattr(dataset, 'metainfo', None),
            validation=declared_metainfo(cfg, 'val'),
            test=declared_metainfo(cfg, 'test'),
        )
        for name, meta in metas.items():
            check_classes(f'the {name} dataset', (meta or {}).get('classes'), count, known)
        if getattr(dataset, 'seed', seed) is None:
            dataset.seed = seed
        distiller.seed = seed
        distiller.image_size = DistillHook._image_size(distiller, dataset)
        distiller.folder = folder
        # A mixture does nothing by itself.
        sources = [m for m in distiller.source.modules() if isinstance(m, SyntheticSource)]
        learns = any(
            type(one).refresh is not SyntheticSource.refresh
            for one in sources
            if not isinstance(one, MixtureSource)
        )
        size = batch or cfg.train_dataloader.batch_size
        return cls(distiller, dataset, int(seed), int(size), learns)

    @property
    def teacher(self):
        """The teacher's adapter."""
        return self.distiller.teacher.adapter

    def start(self, state: Mapping | None = None) -> None:
        """Load the teacher and prepare the source; or go back to a :meth:`state`.

        A source that learns gets the config's student, as it is at the start of a run.
        """
        distiller = self.distiller
        seed_everything(self.seed, 0, 0)
        distiller.resuming = state is not None or not self.learns
        distiller.init_weights()
        distiller.eval()
        if state is not None:
            load_strict(distiller.student.net, state['student'], what='student')
            distiller.resume(state['distill'])
        elif not self.learns:
            source = distiller.source
            source.folder = distiller.folder
            with torch.no_grad():
                source.prepare(
                    self.teacher,
                    seed=self.seed,
                    image_size=distiller.image_size,
                    device=next(self.teacher.net.parameters()).device,
                )
                source.fill(self.teacher)

    def state(self) -> dict:
        """What :meth:`start` needs to go on after some steps."""
        student = {k: v.cpu() for k, v in self.distiller.student.net.state_dict().items()}
        return dict(distill=self.distiller.distill_state(), student=student)

    def step(self, iteration: int) -> Tensor:
        """The images of a step, as a run would draw them whose student does not learn.

        Returns:
            Tensor: RGB, uint8, ``[batch, 3, H, W]`` on the CPU.
        """
        seed_everything(self.seed, iteration + 1, 0)
        source = self.distiller.source
        source.refresh(self.teacher, self.distiller.student.adapter, iteration)
        first = iteration * self.batch
        items = [self.dataset[first + i] for i in range(self.batch)]
        with torch.no_grad():
            images, _ = source.draw(items)
        return (images.cpu() * 255).round().to(torch.uint8)


def synthesize(
    cfg: Config,
    out: str | Path,
    num: int = 1000,
    *,
    resume: bool = False,
    seed: int | None = None,
    batch: int | None = None,
    topk: int = 5,
    threshold: float = 0.3,
    save_seconds: float = 60.0,
    say: Callable[[str], None] = print,
) -> dict:
    """Write the first images that a config's source gives to a run, with the teacher's labels.

    Of a classifier an image folder (:class:`~mmdfkd.engine.image_sets.ClassFolders`), of a detector
    a COCO set (:class:`~mmdfkd.engine.image_sets.CocoSet`), and ``synthesis.json``. Every file
    appears whole or not at all. Until the set is complete, what a killed call goes on from is
    beside it, in ``<out>.unfinished``; with ``resume`` it ends with the files of an undisturbed
    call.

    Args:
        cfg (Config): Of a distillation run.
        out (str | Path): Folder of the set.
        num (int): Number of images.
        resume (bool): Go on with what is there.
        seed (int, optional): The config's by default.
        batch (int, optional): Images of a step; the config's batch size by default.
        topk (int): Classes of a classifier's answer that are kept.
        threshold (float): Least score of a detector's objects.
        save_seconds (float): Time between two states of a source that learns.
        say (Callable): Given a line now and then.

    Returns:
        dict: The contents of ``synthesis.json``.

    Raises:
        ValueError: If a number makes no sense, or the set there is another one.
        RuntimeError: If there is something and ``resume`` is not set.
    """
    for name, value in dict(num=num, topk=topk, batch=1 if batch is None else batch).items():
        if value < 1:
            raise ValueError(f'synthesize: {name} must be at least 1, got {value}.')
    if not 0 <= threshold <= 1:
        raise ValueError(f'synthesize: threshold is from 0 to 1, got {threshold}.')
    # '.' has no name of its own.
    out = Path(os.path.abspath(out))
    unfinished = out.with_name(out.name + '.unfinished')
    if not resume and (unfinished.exists() or (out.exists() and any(out.iterdir()))):
        raise RuntimeError(
            f'{out} holds a set already, or a part of one: go on with --resume, or choose another '
            'folder.'
        )
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmdet')):
        made = Synthesis.of(cfg, unfinished / 'bank', seed, batch)
        names = class_names_of(cfg, made.distiller.teacher.cfg, made.teacher.num_classes)
        settings = _settings(made, cfg, names, topk, threshold)
        finished = _read_json(out / FACTS)
        there = finished or _read_json(unfinished / _SETTINGS)
        if there is None and out.exists() and any(out.iterdir()):
            raise RuntimeError(
                f'{out} holds files, but no set that --resume could go on with: choose another '
                'folder.'
            )
        _check_same(settings, there, out)
        if finished is not None and finished['images'] >= num:
            say(f'{out} is complete: {finished["images"]} images.')
            shutil.rmtree(unfinished, ignore_errors=True)
            return finished
        unfinished.mkdir(parents=True, exist_ok=True)
        write_text_at_once(unfinished / _SETTINGS, json.dumps(settings))
        target: ImageSet = (
            CocoSet(out, names, threshold)
            if made.teacher.detects
            else ClassFolders(out, names, topk)
        )
        records = _make(made, target, unfinished, num, save_seconds, say)
    info = dict(
        settings, images=len(records), data_free=made.distiller.data_free, commit=project_commit()
    )
    target.drop_others(records)
    target.close(records, info)
    write_text_at_once(out / FACTS, json.dumps(info, indent=2) + '\n')
    shutil.rmtree(unfinished)
    say(f'{len(records)} images in {out}')
    return info


def _make(
    made: Synthesis,
    target: ImageSet,
    unfinished: Path,
    num: int,
    save_seconds: float,
    say: Callable[[str], None],
) -> list[dict]:
    """Step until there are enough images; returns all records."""
    records = _read_records(unfinished / _RECORDS)
    state = None
    done = len(records) // made.batch
    if made.learns:
        path = unfinished / _STATE
        state = read_checkpoint(str(path)) if path.is_file() else None
        done = min(done, state['done']) if state is not None else 0
    records = records[: done * made.batch]
    write_text_at_once(
        unfinished / _RECORDS, ''.join(json.dumps(record) + '\n' for record in records)
    )
    if done and (len(records) < num):
        say(f'Going on behind image {len(records)}.')
    target.open()
    if len(records) < num:
        made.start(state)
    began = told = saved = time.perf_counter()
    before = len(records)
    with (unfinished / _RECORDS).open('a', encoding='utf-8') as stream:
        while len(records) < num:
            images = made.step(done)
            with frozen(made.teacher.net), torch.no_grad():
                fresh = target.add(len(records), images[: num - len(records)], made.teacher)
            records += fresh
            stream.writelines(json.dumps(record) + '\n' for record in fresh)
            stream.flush()
            done += 1
            now = time.perf_counter()
            if made.learns and now - saved >= save_seconds:
                _save_state(unfinished / _STATE, dict(made.state(), done=done))
                # The one state that there is names what is drawn now.
                for source in made.distiller.source.modules():
                    if isinstance(source, BankedSource) and source.owns_files:
                        source.bank.prune()
                saved = now
            if now - told > 10 and len(records) < num:
                rate = (len(records) - before) / (now - began)
                say(
                    f'{len(records)} of {num} images, {rate:.1f}/s, '
                    f'{(num - len(records)) / rate:.0f} s to go'
                )
                told = now
    return records


def _settings(made: Synthesis, cfg: Config, names: list[str], topk: int, threshold: float) -> dict:
    """What the files depend on; as JSON gives it back."""
    detects = made.teacher.detects
    checkpoint = Path(str(made.distiller.teacher.checkpoint))
    settings = dict(
        config=Path(cfg.filename or '').name,
        source=cfg.model['source'],
        student=cfg.model['student'] if made.learns else None,
        teacher=checkpoint.name,
        # Many runs' files have one name; of an address there is no file yet.
        teacher_sha256=sha256(checkpoint) if checkpoint.is_file() else None,
        dataset=cfg.train_dataloader['dataset'],
        classes=names,
        seed=made.seed,
        batch=made.batch,
        image_size=list(made.distiller.image_size),
        **(dict(threshold=threshold) if detects else dict(topk=topk)),
    )
    return json.loads(json.dumps(settings, default=str))


def _check_same(settings: Mapping, there: Mapping | None, out: Path) -> None:
    """Never mix two sets."""
    differ = [
        name
        for name in settings
        if there and (name in there or name not in _LATER) and there.get(name) != settings[name]
    ]
    if differ:
        raise ValueError(
            f'{out} was begun with other settings: '
            + ', '.join(f'{name} {there.get(name)!r}, now {settings[name]!r}' for name in differ)
            + '. Use those, or another folder.'
        )


def _read_json(path: Path) -> dict | None:
    return json.loads(path.read_text(encoding='utf-8')) if path.is_file() else None


def _read_records(path: Path) -> list[dict]:
    """Up to a line that a killed call left unfinished."""
    records = []
    for line in path.read_text(encoding='utf-8').splitlines() if path.is_file() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def _save_state(path: Path, state: dict) -> None:
    temporary = path.with_name(path.name + '.tmp')
    torch.save(state, temporary)
    os.replace(temporary, path)
