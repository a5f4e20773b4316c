"""One sitting of a run: prepare, begin or resume, train, finish. The wiring between data, model, engine and products."""

from __future__ import annotations

import json
import os
from functools import partial
from typing import Any

from burnish.config import Config
from burnish.data.loader import MOST_PREVIEWS, Loader
from burnish.data.new_tokens import beginnings, extend, refuse_new_tokens
from burnish.data.order import permutation
from burnish.data.prepare import encode, find_rows
from burnish.data.reader import content_of, find_reader, load_reader
from burnish.engine import checkpoint
from burnish.engine.fit import Fit, settled
from burnish.engine.frozen import ask, opened
from burnish.engine.guard import StopSignal, make_torch_exact
from burnish.engine.hooks import Evaluate, Gradually, Log, ObeySignals, Save, sweep
from burnish.engine.loop import Hook, Job, State, train
from burnish.engine.profile import Profile
from burnish.engine.replay import Replays
from burnish.env import describe, keep_freed_memory, peak_flops
from burnish.errors import Stopped, UserError
from burnish.evaluate.final import final
from burnish.evaluate.measure import score, sound_metrics
from burnish.models.adapter import adapt, merged, save_adapter
from burnish.models.begin import first_model
from burnish.models.configure import first_config, model_config
from burnish.models.dial import dial_of, preset_of
from burnish.models.freeze import freeze, set_training_mode, thawing
from burnish.models.load import Loaded, quiet
from burnish.models.precision import Weights
from burnish.models.source import model_folder
from burnish.models.tokens import put_together
from burnish.ops.batch_norm import hold_batch_norm
from burnish.ops.dropout import swap_dropout
from burnish.optim.optimizers import Optimizers
from burnish.optim.schedules import Schedule
from burnish.parallel.group import ALONE, Group
from burnish.plan.derive import Plan, choose_sequence, limits_of_exactness
from burnish.plan.make import make_plan
from burnish.plan.show import changes, end_rows, left_out_rows, plan_rows, profile_rows
from burnish.run import RunFolder, replace_folder, save_whole, write_atomic, write_json
from burnish.task import Records, Task
from burnish.terminal import StepNote, Terminal
from burnish.units import Duration


class Session:
    """A run from its settings to its report.

    `prepare` and `build` read and check and write nothing into the run folder, so a wrong input leaves nothing behind.
    `begin` writes what the run is. `train` goes from the last checkpoint to the end. `finish` makes what people use.
    """

    plan: Plan

    def __init__(self, config: Config, task_class: type[Task], folder: RunFolder, terminal: Terminal):
        self.config, self.task_class, self.folder, self.terminal = config, task_class, folder, terminal
        self.resuming = folder.is_run
        self.fit: Fit | None = None
        self.replays: Replays | None = None
        self.measured: dict[int, Records] = {}  # of all validation rows, after the step measured last

    # -- prepare -------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Find, check and encode the data, and plan the run (or read its stored plan).

        Raises:
            UserError: anything wrong with data, model or settings.
        """
        config = self.config
        if config.run.resume not in ("auto", "never"):
            checkpoint.chosen(config.run.resume)
        stored = Plan.from_json(self.folder.read_json(self.folder.plan)) if self.resuming else None
        self.source = model_folder(config.model.path, config.model.revision) if config.model.path else None
        self.backbone = model_folder(config.model.backbone, None) if config.model.backbone else None
        preset = preset_of(config) if config.model.preset is not None else None
        self.task_class = self.task_class.suited(first_config(config, self.source), config.task)
        refuse_new_tokens(config, self.task_class)
        self.splits = find_rows(config, self.task_class)
        if stored and stored.data["fingerprint"] != self.splits.fingerprint:
            raise UserError(
                f"{self.folder}: the data has changed since this run began. Put it back, or give another --run.dir."
            )
        facts = stored.facts if stored else self.task_class.learn(self.splits.learned, config.task)
        if self.resuming:
            reader = load_reader(self.task_class, self.folder.reader)
        else:
            pretrained, find = self.source or self.backbone, partial(model_folder, revision=None)
            given = pretrained, preset, self.splits, find, self.terminal.say
            reader = find_reader(self.task_class, config.model, facts, *given)
            extend(reader, config)
        self.beginnings = beginnings(reader, config)
        self.task = self.task_class(config.task, reader, facts)
        self.task.augment = config.augment
        self.model_config = model_config(config, self.task, self.source, len(self.beginnings), self.backbone)
        sequence = stored.sequence if stored else choose_sequence(config, self.task, self.model_config)[0]
        content = content_of(self.task_class, reader)
        self.stores = encode(config, self.task, self.splits, sequence, content, self.terminal)
        if stored:
            self.plan = stored
            for note in changes(self.folder.read_json(self.folder.environment), config.run.threads, stored.threads):
                self.terminal.say(note, style="yellow")
        else:
            given = self.splits, self.stores, self.folder, sequence, list(self.beginnings)
            self.plan = make_plan(config, self.task, self.model_config, *given)

    def show_plan(self) -> None:
        """Print what will happen and why."""
        rows = plan_rows(self.plan, self.config, str(self.folder), limits_of_exactness(self.model_config))
        if dial := dial_of(self.config):
            rows[2:2] = dial.rows()
        rows[4:4] = left_out_rows(self.splits, self.stores["train"], self.plan, self.task.cuts_long_rows())
        self.terminal.facts(f"{'Resuming' if self.resuming else 'Plan'}: {self.task_class.name}", rows)

    def build(self) -> None:
        """Make the model, freshly or from its weights, and try how it can be computed.

        Raises:
            UserError: the weights do not fit, or the model cannot do the task.
        """

        config, plan = self.config, self.plan
        make_torch_exact(plan.threads)
        if plan.device == "cpu":
            keep_freed_memory()
        self._ask_frozen()
        model, self.loaded = self._first_model()
        model.to(plan.device)
        adapt(model, config.adapter, config.freeze, list(self.beginnings))
        self.frozen = freeze(model, config.freeze)
        self.thaw = thawing(model, config.freeze, self.frozen)
        if plan.device == "cpu":
            swap_dropout(model)
        norms = hold_batch_norm(model, config.train.norm_rows)
        self.task.check(model)
        if norms or config.train.norm_rows:
            fresh = None if self.source else self.stores["train"]
            self.terminal.say(settled(model, norms, self.task, fresh, plan.device, bool(self.backbone)))
        self.fit = fit = Fit(model, self.task, self.stores["train"], plan.device)
        fit.refuse_misfit()
        if not plan.arrangement:
            plan.arrangement, plan.why["arrangement"] = fit.arrangement(config.train.packing, plan.compile)
            refusal = fit.refuses_bf16() if plan.precision == "bf16" and config.train.precision == "auto" else None
            plan.reads = fit.stack.reads if fit.stack else None
            if refusal:
                plan.precision, plan.why["precision"] = "fp32", f"the model does not compute in bfloat16: {refusal}"
        fit.prepare(plan.arrangement, plan.precision)
        if fit.stack is not None:
            fit.stack.packed, fit.stack.reads = plan.arrangement == "packed", plan.reads
            if plan.compile:
                fit.stack.compile(self.folder.compiled, config.train.compile == "graphs")
            fit.stack.recompute(plan.recompute)

    def _first_model(self) -> tuple[Any, Loaded]:
        """Return the model as it is before the first step, and what became of the weights it comes from."""
        given = self.model_config, self.config.run.seed, self.source, self.backbone, self.beginnings
        return first_model(self.task_class.auto_class, *given)

    def _ask_frozen(self) -> None:
        """Let the frozen model that the task asks answer every row, where it has not done so before.

        Raises:
            UserError: it cannot be asked, or is another one than when the run began.
        """
        asked, plan, config = self.task.frozen_model(), self.plan, self.config
        if asked is None:
            return
        model = opened(asked, self.task, lambda: self._first_model()[0], plan.device, config)
        wanted = config.train.packing, plan.precision
        plan.frozen = ask(model, asked, self.task, self.stores, plan.device, wanted, plan.frozen, self.terminal)

    # -- begin ---------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Write what the run is; `config.yaml` last, so a folder that has it has all."""
        folder = self.folder
        self.terminal.open_log(folder.text_log)
        if self.resuming:
            return
        save_whole(self.task.tokenizer, folder.reader)
        write_json(folder.environment, describe(self.plan.device, self.plan.threads))
        broken = "".join(json.dumps(vars(row), ensure_ascii=False) + "\n" for row in self.splits.broken)
        if broken:
            write_atomic(folder.rejects, broken)
        write_json(folder.plan, self.plan.to_json())
        write_atomic(folder.config, self.config.yaml())

    # -- train ---------------------------------------------------------------------------------------------------

    def train(self, signal: StopSignal, group: Group = ALONE) -> None:
        """Train to the end of the run, from its newest good checkpoint if it has one."""
        config, plan = self.config, self.plan
        self.join(group)
        state = self._restored(State())
        if state.step == 0:
            for line in self.loaded.lines():
                self.terminal.say(f"weights: {line}")
        if state.step:
            self.terminal.say(f"continuing after step {state.step} of {plan.total_steps}")
        self.replays = self._replay()
        self.job.loader.prefix = self.replays.found.get("train")
        note, stack = StepNote(), self.job.stack
        computed = 1 - stack.depth / len(stack.layers) if stack and self.replays.found else 1.0
        log = Log(
            self.folder,
            config.run.log_every,
            len(self.stores["train"]),
            lambda line, state: self.terminal.advance(state.step, note(line)),
            plan.model["flops_per_position"] * computed,
            peak_flops(plan.device, plan.precision),
        )
        keep_best = "validation" in self.stores
        every = Duration.parse(config.checkpoint.every)
        every_steps = None if every.unit == "seconds" else self._steps(every)
        save = Save(every_steps, every.amount, config.checkpoint.keep, log, keep_best)
        hooks: list[Hook] = [log]
        if self.thaw and config.freeze.thaw:
            hooks.append(Gradually(self.thaw, self._steps(Duration.parse(config.freeze.thaw))))
        if "validation" in self.stores:
            measure = lambda step: self._measure(step, signal)  # noqa: E731
            sense = plan.best, plan.best in self.task.lower_is_better
            hooks.append(Evaluate(plan.evaluate_every, measure, *sense, config.train.patience, log, keep_best))
        hooks += [save, ObeySignals(signal, save), sweep]
        if config.run.profile and group.leads:
            hooks.append(Profile(self._show_profile))
        try:
            with signal.deferred(), self.terminal.progress("training", plan.total_steps, state.step):
                try:
                    self.state = train(self.job, state, hooks)
                except _StopAsked:
                    save.now(self.job, state)
                    raise Stopped(
                        f"{signal.asked}: saved at step {state.step}. The same command continues the run."
                    ) from None
        finally:
            log.close()
        if self.job.writer.reason:
            self.terminal.say(
                f"checkpoints were written while the run waited: {self.job.writer.reason}", style="yellow"
            )
        if self.state.ended:
            self.terminal.say(f"stopped early: {self.state.ended}")

    def _show_profile(self, found: dict[str, Any]) -> None:
        write_json(self.folder.profile, found)
        title = f"Where {found['steps']} steps of {found['seconds'] * 1000:.0f} ms each went"
        self.terminal.facts(title, profile_rows(found))

    def _steps(self, every: Duration) -> int:
        store = self.stores["train"]
        return max(1, every.steps(
            total_steps=self.plan.total_steps,
            rows_per_epoch=len(store),
            batch=self.config.train.batch,
            tokens_per_row=float(store.lengths().mean()),
        ))  # fmt: skip

    def join(self, group: Group = ALONE) -> None:
        """Set `job`: all that trains the built model, together with the other ranks."""
        config, plan, fit = self.config, self.plan, self.fit
        assert fit is not None  # built before
        if group.size == 1:
            weights = Weights(fit.model, plan.precision)
        else:
            group.shard(fit.model, fit.stack.layers if fit.stack else [], plan.precision)
            weights = Weights(fit.model, "fp32")  # the shards are; they are rounded when a layer is put together
        set_training_mode(fit.model, self.frozen)
        loader = Loader(
            self.stores["train"],
            self.task,
            config.run.seed,
            config.train.batch,
            plan.micro_batch,
            plan.total_rows,
            config.data.workers,
            padded=plan.arrangement == "padded",
            views=config.freeze.views,
            group=config.train.norm_rows or 1,
            rank=group.rank,
            ranks=group.size,
        )
        self.job = Job(
            model=fit.model,
            weights=weights,
            stack=fit.stack,
            task=self.task,
            loader=loader,
            optimizers=Optimizers(fit.model, config.optim, plan.lr, weights.exact),
            schedule=Schedule(config.schedule, plan.total_steps, plan.warmup_steps),
            total_steps=plan.total_steps,
            frozen=self.frozen,
            device=plan.device,
            seed=config.run.seed,
            clip=config.optim.clip,
            on_non_finite=config.run.on_non_finite,
            checkpoints=self.folder.checkpoints,
            shrunk=self._shrunk,
            group=group,
        )

    def _shrunk(self, micro_batch: int) -> None:
        """Keep a micro-batch that was halved because memory ran out, for the next sitting too."""
        self.plan.micro_batch = micro_batch
        self.plan.why["micro_batch"] = "halved when memory ran out"
        write_json(self.folder.plan, self.plan.to_json())
        self.terminal.say(f"memory ran out: going on with {micro_batch} rows at once; the result stays the same")

    def _replay(self) -> Replays:
        """Return what the frozen layers give, computed for the training rows where it is not stored."""
        config, plan, fit = self.config, self.plan, self.fit
        assert fit is not None  # built before
        replays = Replays(fit, self.task, self.stores, plan.device, self.terminal)
        if not (config.freeze.layers or config.freeze.pattern or config.adapter.kind != "none"):
            return replays  # a model may have numbers of its own that never train, such as fixed positions
        refusal = "they begin to train later" if self.thaw else None
        if self.job.group.size > 1:
            refusal = "it is not kept with several ranks"
        epochs = plan.total_rows / len(self.stores["train"])
        replays.open(config.freeze, plan.precision, self.job.loader, epochs, refusal)
        return replays

    def _restored(self, state: State) -> State:
        resume = self.config.run.resume
        if resume not in ("auto", "never"):
            path = checkpoint.chosen(resume)
        else:
            path, problems = checkpoint.newest(self.folder.checkpoints)
            for problem in problems:
                self.terminal.say(f"damaged checkpoint passed over: {problem}", style="yellow")
        if path is None:
            return state
        try:
            return self.job.load(path)
        except checkpoint.Damaged as error:
            raise UserError(f"{error}. Give another --run.resume or --run.dir.") from error

    def _measure(self, step: int, signal: StopSignal) -> dict[str, float]:
        def obey(done: int) -> None:
            if signal.asked and self.job.group.size == 1:  # several ranks stop together, after a step
                raise _StopAsked

        rows = permutation(0, 0, len(self.stores["validation"]))[: self.plan.evaluate_rows]
        records = self._score("validation", obey, sorted(int(row) for row in rows))
        self.measured = {step: records} if len(rows) == len(self.stores["validation"]) else {}
        metrics = sound_metrics(self.task, records)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self.terminal.say(f"  step {step}  validation  {shown}")
        return metrics

    def _score(self, split: str, progress: Any = lambda done: None, rows: list[int] | None = None) -> Any:
        plan = self.plan
        prefix = None
        if self.replays and split == "validation":  # scored again and again
            wanted = rows or range(len(self.stores[split]))
            prefix = self.replays.fill(split, wanted, plan.total_steps / plan.evaluate_every)
        with self.job.averaged():
            return score(
                self.job.model,
                self.task,
                self.stores[split],
                group=self.job.group,
                batch=max(plan.micro_batch, 32) if plan.micro_batch == self.config.train.batch else plan.micro_batch,
                device=plan.device,
                stack=self.job.stack,
                prefix=prefix,
                progress=progress,
                rows=rows,
            )

    # -- finish --------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Write `model/`, the final figures, the report and the card; `metrics.json` last, which makes the run finished."""
        from burnish.report import card, page  # here: the first step need not wait for them

        folder, state = self.folder, self.state
        step = state.step
        if self.job.group.size > 1:  # the ranks have parted: put the model together from what they saved
            self.build()
            self.join()
            self.job.load(checkpoint.path_of(folder.checkpoints, step))
        if self.config.train.best is not None and state.best is not None:
            step = state.best["step"]
            if step != state.step:
                self.job.load(checkpoint.path_of(folder.checkpoints, step))
            self.terminal.say(
                f"model/ holds step {step}, the best by {state.best['metric']} ({state.best['value']:.4f})"
            )
        self._export()
        stores = {split: self.stores[split] for split in ("validation", "test") if split in self.stores}
        known = {"validation": self.measured[step]} if step in self.measured else {}
        judge = lambda split: known.get(split) or self._score(split)  # noqa: E731
        metrics, figures = final(self.task, state, step, folder.log_lines(), stores, judge)
        figures += self.task.previews(self.job.loader.seen(0, MOST_PREVIEWS))
        with put_together(), self.job.averaged():
            figures += self.task.samples(self.job.model, self.config.generate)
        write_json(folder.figures, {"metrics": metrics, "figures": figures})
        write_atomic(folder.report, page.render_report(folder))
        write_atomic(folder.card, card.render_card(folder))
        write_json(folder.metrics, metrics)
        self.terminal.facts("Done", end_rows(metrics, self.plan.sequence))
        self.terminal.say(f"report  {folder.report}")
        asked = self.task.asked_columns(self.config.data).values()
        example = f"'{json.dumps(dict.fromkeys(asked, '...'))}'" if len(asked) > 1 else f'"{self.task.example_input}"'
        self.terminal.say(f"use it  burnish predict {folder} {example}{self.task.use_settings}")

    def _export(self) -> None:
        target = self.folder.model
        temporary = target.with_name(f".tmp-model-{os.getpid()}")
        with quiet(), self.job.averaged(), self.job.weights.in_float32():
            self.job.model.save_pretrained(str(temporary), state_dict=merged(self.job.model))
        self.task.tokenizer.save_pretrained(str(temporary))
        self.task.complete(temporary)
        save_adapter(self.job.model, temporary / "adapter", str(self.config.model.path))
        replace_folder(temporary, target)


class _StopAsked(Exception):
    """Leaves an evaluation when a signal asked the run to stop."""
