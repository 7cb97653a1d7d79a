"""The record of a training: optimizer and schedule, history, checkpoints, interruptions, facts.

The training loop in SegStudio.py computes; a TrainingRecorder does the rest, once for each step.
"""

import contextlib
import csv
import functools
import inspect
import json
import math
import numbers
import os
import platform
import re
import signal
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path

import torch
import torchvision

if __package__:
    from . import backstage, loading, processes
else:  # the folder of this file is on sys.path
    import backstage
    import loading
    import processes


# ---- how to compute -----------------------------------------------------------------------------

MEMORY_FORMATS = {False: torch.contiguous_format, True: torch.channels_last}


def use_bf16(precision, device):
    """Whether to compute in bfloat16; "auto" asks the hardware."""
    if precision not in ("fp32", "bf16", "auto"):
        raise ValueError(f'precision is "fp32", "bf16" or "auto", not {precision!r}')
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.11
    in_use = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL")  # a user may hide a part of the CPU
    hidden = not any(word in in_use.upper() for word in ("ALL", "DEFAULT", "BF16", "AMX"))
    return device.type == "cpu" and bool(capabilities.get("avx512_bf16", False)) and not hidden


def bf16_autocast(device, bf16):
    """Inside, convolutions compute in bfloat16 if `bf16` is True."""
    if not bf16:  # torch.autocast raises an error where a device has none, even if not enabled
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


# ---- optimizers and schedules -------------------------------------------------------------------


class Optimizers:
    """Several optimizers, each with its own parameters, that are used as one."""

    def __init__(self, optimizers):
        self.optimizers = list(optimizers)

    @property
    def param_groups(self):
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def zero_grad(self):
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def step(self):
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self):
        return {str(k): optimizer.state_dict() for k, optimizer in enumerate(self.optimizers)}

    def load_state_dict(self, state):
        for k, optimizer in enumerate(self.optimizers):
            optimizer.load_state_dict(state[str(k)])


def make_optimizer(optimizer, net, dls):
    """The optimizer of a training: the one that is given, or else SGD."""
    if not any(p.requires_grad for p in net.parameters()):
        raise ValueError(
            f"{type(net).__name__} has no parameter that can be trained: requires_grad is False "
            f"for all of them"
        )
    if optimizer is None:
        optimizer = torch.optim.SGD(net.parameters(), lr=dls.learning_rate, momentum=dls.momentum)
    if callable(optimizer):
        optimizer = optimizer(net.parameters())
    if isinstance(optimizer, (list, tuple)):
        optimizer = Optimizers(optimizer)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in trained for p in net.parameters()):
        raise ValueError(
            f"the optimizer has no parameter of this {type(net).__name__}, so nothing would be "
            f"trained: make an optimizer for each network"
        )
    for each in getattr(optimizer, "optimizers", [optimizer]):
        closure = inspect.signature(each.step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            raise ValueError(
                f"{type(each).__name__} calls a closure several times in each step, which this "
                f"loop does not support: use another optimizer, such as torch.optim.AdamW"
            )
    return optimizer


class FractionSchedule:
    """A learning rate that follows a function of the fraction of training done, 0 to 1.

    torch's schedulers count iterations. In a training bounded by time their number is unknown.
    """

    def __init__(self, function, optimizer, recorder):
        self.function, self.optimizer, self.recorder = function, optimizer, recorder
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.set(recorder.fraction_done())

    def set(self, fraction):
        self.fraction = fraction
        factor = self.function(min(fraction, 1.0))
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def state_dict(self):
        return {"fraction": self.fraction}

    def load_state_dict(self, state):
        self.set(state["fraction"])  # an augmentation may follow the function, too

    def step(self):
        self.set(self.recorder.fraction_done(more=1))  # the recorder has not counted this one yet


class PlateauSchedule:
    """torch's ReduceLROnPlateau; it gets the mean training loss after each epoch."""

    def __init__(self, scheduler):
        if scheduler.mode != "min":
            raise ValueError(
                'ReduceLROnPlateau follows the mean loss of each epoch here: use mode="min"'
            )
        self.scheduler = scheduler
        self.state_dict, self.load_state_dict = scheduler.state_dict, scheduler.load_state_dict

    def step(self):
        """Nothing happens after a single iteration."""

    def after_epoch(self, mean_loss):
        self.scheduler.step(mean_loss)


def make_scheduler(scheduler, optimizer, recorder):
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        return PlateauSchedule(scheduler)
    if scheduler is None or hasattr(scheduler, "step"):
        return scheduler
    return FractionSchedule(scheduler, optimizer, recorder)


# ---- history ------------------------------------------------------------------------------------


class TrainingHistory:
    """The record of a training: one row for each interval, with losses, seconds and scores.

    A row is a dict with epoch, iteration (counted over all epochs), seconds (of training, without
    evaluations), loss (mean over the interval) and learning_rate. A loss with a method terms() adds
    the mean of each term and grad_norm_TERM, the norm of its gradient at the output in the last
    batch of the interval. An evaluation adds its scores. losses.csv in the run's folder is this
    table.
    """

    def __init__(self, loss_name):
        self.loss_name = loss_name
        self.rows = []
        self.iterations = 0
        self.seconds = 0.0

    @property
    def losses(self) -> list:
        """The mean loss of each interval, as DLStudio prints it."""
        return [loss for _, loss in self.column("loss")]

    def column(self, name: str) -> list:
        """[(iteration, value), ...] of the rows that have a value of that name."""
        return [(row["iteration"], row[name]) for row in self.rows if name in row]

    def add(self, **values):
        """Add values to the row of this iteration; make that row if there is none."""
        if not self.rows or self.rows[-1]["iteration"] != self.iterations:
            self.rows.append({"iteration": self.iterations, "seconds": round(self.seconds, 3)})
        self.rows[-1].update(values)

    def write_csv(self, path):
        """Write the rows as a table; a cell without a value stays empty."""
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, columns)
            table.writeheader()
            table.writerows(self.rows)

    def read_csv(self, path):
        """The rows that write_csv wrote."""
        with Path(path).open(newline="", encoding="utf-8") as file:
            self.rows = [
                {name: json.loads(text) for name, text in row.items() if text}
                for row in csv.DictReader(file)
            ]
        self.iterations = self.rows[-1]["iteration"] if self.rows else 0
        self.seconds = self.rows[-1]["seconds"] if self.rows else 0.0


# ---- interruptions ------------------------------------------------------------------------------


class Interruption:
    """Inside, Ctrl-C and SIGTERM are noted and wait for the end of the step.

    SIGTERM is what a batch system sends before it kills. A second Ctrl-C stops at once.
    """

    def __init__(self):
        self.noted = False
        self.handlers = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # else Python refuses
            for number in (signal.SIGINT, signal.SIGTERM):
                self.handlers[number] = signal.signal(number, self.note) or signal.SIG_DFL
        return self

    def note(self, number, frame):
        if self.noted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.noted = True

    def __exit__(self, *_):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)


# ---- checkpoints --------------------------------------------------------------------------------

CHECKPOINT_SECONDS = 120  # at most this long between two checkpoints
LATEST, PREVIOUS = "checkpoint.pt", "checkpoint-previous.pt"


def write_checkpoint(folder, state):
    """Write checkpoint.pt; the one before it becomes checkpoint-previous.pt."""

    def write(part):
        torch.save(state, part)
        latest = folder / LATEST
        if latest.exists():
            backstage.change_file(latest, lambda: latest.replace(folder / PREVIOUS))

    backstage.write_or_warn(folder / LATEST, write)


def read_checkpoint(folder, log):
    """The state of the latest checkpoint that can be read; None if there is none.

    Errors: ValueError if there are checkpoints, but all of them are damaged.
    """
    damaged = []
    for path in (folder / LATEST, folder / PREVIOUS):
        if path.exists():
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
                if isinstance(state, dict) and "must_fit" in state:
                    return state
                reason = "it is not a checkpoint of this version"
            except Exception as error:  # torch.load raises nearly anything on a damaged file
                reason = (str(error) or type(error).__name__).splitlines()[0]
            damaged.append(f"{path.absolute()} is damaged ({reason})")
            log(f"warning: {damaged[-1]}")
    if damaged:
        raise ValueError(f"{'; '.join(damaged)}: remove the folder of this run to start again")
    return None


def delete_checkpoints(folder):
    for path in (folder / PREVIOUS, folder / LATEST):
        delete = functools.partial(path.unlink, missing_ok=True)
        backstage.try_to_change(path, functools.partial(backstage.change_file, path, delete))


# ---- the recorder -------------------------------------------------------------------------------


class TrainingRecorder:
    """The bookkeeping of a training: progress, log, history, evaluation, checkpoint, time limit.

    The training loop runs over epochs() and over `batches`, and calls after_step() once for each
    batch.
    """

    def __init__(
        self,
        dl_studio,
        net,
        criterion,
        optimizer,
        loader,
        *,
        max_seconds=None,
        log_every=500,
        on_log=None,
        evaluate_every=None,
        evaluate=None,
        augment=None,
        order=None,
    ):
        for name, value in (("log_every", log_every), ("evaluate_every", evaluate_every)):
            whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
            if value is not None and not (whole and value > 0):
                raise ValueError(f"{name} is a whole number above 0, not {value!r}")
        if max_seconds is not None and not 0 < max_seconds < math.inf:
            raise ValueError(f"max_seconds is a number above 0, not {max_seconds!r}")
        self.dl_studio = dl_studio
        self.net = net
        self.criterion = criterion
        self.optimizer = optimizer
        self.augment = augment
        self.loader = loader
        self.batches = loading.TrainingBatches(loader, dl_studio.seed, order, dl_studio.device)
        self.max_seconds = max_seconds
        self.log_every = log_every
        self.on_log = on_log
        self.evaluate_every = evaluate_every
        self.evaluate = evaluate
        # A buffer may contain infinities on purpose, such as an attention mask.
        state = net.state_dict().items()
        self.finite = {name for name, value in state if torch.isfinite(value).all()}
        self.scheduler = None
        self.interruption = Interruption()
        self.stopping = False  # all processes stop after this step
        self.history = TrainingHistory(loss_name(criterion))
        self.complete = False  # a training to continue that is finished already
        self.epochs_done = 0
        self.first = 0  # iterations done before resuming
        self.epoch_start = 0  # iterations done before this epoch
        self.inside_epoch = False  # True also if a resumed training begins inside an epoch
        batches = self.batches.number  # None: a stream
        if batches == 0:
            self.refuse_empty_loader()
        self.iterations = None
        if not max_seconds and batches is not None:
            self.iterations = dl_studio.epochs * batches
        # With a time limit: the fraction of the time that was over after each iteration.
        self.fractions = []
        self.replayed = backstage.replayed_fractions(dl_studio) if max_seconds else None
        interval = min(log_every, batches or 1024)  # a line of the log covers one epoch at most
        self.losses = torch.zeros(interval, device=dl_studio.device)
        self.terms = defaultdict(float)
        self.epoch_loss = 0.0  # the sum of the losses of this epoch
        self.count = 0  # iterations since the last line of the log
        self.logged_at = 0.0  # seconds of training at that line
        self.saved_at = time.perf_counter()  # when the last checkpoint was written
        self.expected_end = None  # in seconds of training, when the time left was logged
        self.output = self.masks = None  # of the last batch

    @contextlib.contextmanager
    def watch(self):
        """Inside, the training stops cleanly: at Ctrl-C, and when a worker is killed."""
        try:
            with self.interruption:
                yield
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            guard = ""
            if torch.multiprocessing.get_start_method() != "fork":  # Windows, macOS
                guard = ', or because the script has no if __name__ == "__main__":'
            raise ChildProcessError(
                f"a process that loads images was killed, perhaps because the memory was full"
                f"{guard} ({str(error).splitlines()[0]}). Use fewer workers, or "
                f"num_workers=0. {backstage.how_to_go_on(self.dl_studio)}"
            ) from error

    # ---- what the loop calls ----

    def epochs(self):
        """Count the epochs until the last one is done, or the time is up."""
        if self.complete:
            return
        self.first = self.history.iterations  # not 0 after resuming
        self.clock = time.perf_counter() - self.history.seconds
        bar = {"total": self.iterations, "initial": self.first, "unit": "iteration"}
        if self.max_seconds:
            seconds_of = "{l_bar}{bar}| {n_fmt} of {total_fmt} s{postfix}"
            bar = {"total": math.ceil(self.max_seconds), "bar_format": seconds_of}
        with backstage.progress_bar(desc="training", **bar) as self.bar:
            while self.inside_epoch or not self.finished:
                if not self.inside_epoch:
                    self.batches.begin(self.epochs_done)
                    self.epoch_start, self.epoch_loss = self.history.iterations, 0.0
                    self.inside_epoch = True
                if not self.finished:  # a resumed training may have done its last step
                    yield self.epochs_done + 1
                if self.history.iterations == self.epoch_start:
                    self.refuse_empty_loader()
                self.end_epoch()
            self.agree()
            if self.stopping:
                self.stop()

    def end_epoch(self):
        if self.count:
            self.write_log()
        if isinstance(self.scheduler, PlateauSchedule):
            number = self.history.iterations - self.epoch_start
            (total,) = processes.reduce([float(self.epoch_loss)])
            self.scheduler.after_epoch(total / number / processes.world_size())
        self.epochs_done += 1
        self.inside_epoch = False
        with self.off_the_clock():
            self.refuse_weights_that_are_not_finite()
            self.save_checkpoint()

    def after_step(self, loss, output, masks):
        """Record the loss of one step; log, evaluate and save at the set intervals."""
        self.net.was_trained = True
        if self.count == len(self.losses):  # the length of the epoch was not known
            self.losses = torch.cat([self.losses, torch.zeros_like(self.losses)])
        loss = loss.detach() * self.batches.weight
        self.losses[self.count] = loss
        self.epoch_loss = self.epoch_loss + loss
        self.count += 1
        self.history.iterations += 1
        self.history.seconds = time.perf_counter() - self.clock
        self.agree()
        if self.max_seconds:
            fraction = self.history.seconds / self.max_seconds
            if self.replayed is not None:
                fraction = self.replayed[self.history.iterations - 1]
            self.fractions.append(fraction)
        self.output, self.masks = output.detach(), masks
        for name, value in getattr(self.criterion, "latest_terms", {}).items():
            self.terms[name] += torch.as_tensor(value).detach() * self.batches.weight
        if self.max_seconds:
            self.bar.update(int(min(self.history.seconds, self.max_seconds)) - self.bar.n)
        else:
            self.bar.update()
        # Reading a value makes the CPU wait for the GPU, so this happens every 50 steps there.
        if self.losses.is_cpu or self.count % 50 == 1:
            self.stop_unless_finite()
            self.bar.set_postfix(loss=f"{self.losses[self.count - 1]:.4g}", refresh=False)
        self.estimate_time()
        reported = self.count == self.log_every
        if reported:
            self.write_log()
        if self.evaluate_every and self.history.iterations % self.evaluate_every == 0:
            reported = True
            with self.off_the_clock():
                scores = self.evaluate().compute()
                names = ("mean_iou", "mean_dice", "pixel_accuracy", "boundary_iou")
                self.history.add(**{name: scores[name] for name in names})
                self.save_history()
        if self.stopping:
            self.stop()
        if reported or time.perf_counter() - self.saved_at > CHECKPOINT_SECONDS:
            with self.off_the_clock():
                self.save_checkpoint()

    def agree(self):
        """Give all processes the same time and the same decision to stop.

        A signal may reach them in different steps. If one process stopped alone, the others would
        wait for its gradients.
        """
        values = [self.history.seconds, float(self.interruption.noted)]
        self.history.seconds, noted = processes.reduce(values, "max")
        self.stopping = noted > 0

    def stop(self):
        """Write a checkpoint and end the script, after Ctrl-C or SIGTERM."""
        self.save_checkpoint()
        how = backstage.how_to_go_on(self.dl_studio)
        raise KeyboardInterrupt(f"stopped after iteration {self.history.iterations}. {how}")

    @property
    def finished(self):
        return self.fraction_done() >= 1

    def fraction_done(self, more=0):
        """The fraction of the training that is done, after `more` further iterations."""
        if self.max_seconds:
            return self.fractions[-1] if self.fractions else 0.0
        if self.iterations is None:  # the loader does not know its length
            return self.epochs_done / self.dl_studio.epochs
        return (self.history.iterations + more) / self.iterations

    # ---- the beginning and the end ----

    def begin(self, scheduler, facts, resume):
        """Continue the run of this folder or move it aside; write settings.json; log the start.

        Errors: ValueError if the run to continue was made with other settings; nothing is changed
        then.
        """
        self.scheduler = scheduler
        self.must_fit = what_must_fit(facts)
        # A script that trains several networks in one folder can only continue the last one.
        self.number_of_training = self.dl_studio._trainings + 1
        if resume:
            self.continue_run()
        elif self.number_of_training == 1:
            backstage.move_earlier_run_aside(self.dl_studio)
        if self.complete:
            return
        if self.history.iterations == 0 and getattr(self.net, "was_trained", False):
            self.dl_studio.log(
                "This network was trained before, and this training goes on from its weights. To "
                "compare trainings, give each a new network, or a copy.deepcopy of one that is not "
                "trained yet."
            )
        if not (self.dl_studio.run_dir / "model.pt").exists():  # else keep that model's
            self.write_settings(facts)
        device = facts["machine"]["device"]
        self.dl_studio.log(f"Training on {device} with the {self.history.loss_name} loss")
        hint = hint_at_other_programs(self.dl_studio.device)
        if hint:
            self.dl_studio.log(hint)

    def end(self, facts):
        """Call after the model is saved: write its settings.json and delete the checkpoints."""
        self.dl_studio._trainings += 1
        if self.complete:
            return
        self.dl_studio.log("\nFinished Training\n")
        self.write_settings(facts)
        if self.max_seconds:
            self.dl_studio.write_json(backstage.FRACTIONS, self.fractions)
        if self.dl_studio.run_dir / "losses.csv" in backstage.HELD:
            self.save_history()
        delete_checkpoints(self.dl_studio.run_dir)

    def write_settings(self, facts):
        path = self.dl_studio.run_dir / "settings.json"
        backstage.try_to_change(path, lambda: self.dl_studio.write_json(path.name, facts))

    # ---- the log ----

    def write_log(self):
        """One line of the log and one row of losses.csv for the iterations since the last one."""
        self.stop_unless_finite()  # before anything is saved
        # With several processes, each recorded its share.
        losses = processes.reduce(self.losses[: self.count]) / processes.world_size()
        loss = losses.mean().item()
        terms = [float(value) for value in self.terms.values()]
        terms = [value / processes.world_size() for value in processes.reduce(terms)]
        epochs = "?" if self.max_seconds else self.dl_studio.epochs
        iteration = self.history.iterations - self.epoch_start
        self.history.add(
            epoch=self.epochs_done + 1,
            loss=loss,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            **{name: v / self.count for name, v in zip(self.terms, terms, strict=True)},
            **{f"grad_norm_{name}": norm for name, norm in self.gradient_norms().items()},
        )
        self.dl_studio.log(
            f"[epoch={self.epochs_done + 1}/{epochs}, iter={iteration:4d}  elapsed_time="
            f"{self.history.seconds:3.0f} secs]   {self.history.loss_name} loss: {loss:.3f}"
        )
        self.correct_estimate()
        self.logged_at = self.history.seconds
        self.count = 0
        self.terms.clear()
        with self.off_the_clock():
            self.save_history()
            if self.on_log is not None:
                self.on_log(self.history, self.net)

    def gradient_norms(self):
        """{term: norm of its gradient at the output}, for the last batch."""
        if not hasattr(self.criterion, "terms"):
            return {}
        output = self.output.float().requires_grad_()

        def norm(term):
            if not term.requires_grad:
                return 0.0
            options = {"retain_graph": True, "materialize_grads": True}  # 0 if it ignores output
            return torch.autograd.grad(term, output, **options)[0].norm().item()

        with torch.enable_grad():
            terms = self.criterion.terms(output, self.masks)
            norms = {name: norm(torch.as_tensor(term)) for name, term in terms.items()}
        if processes.world_size() > 1:
            share = self.batches.weight / processes.world_size()
            squares = processes.reduce([(n * share) ** 2 for n in norms.values()])
            norms = {name: n**0.5 for name, n in zip(norms, squares, strict=True)}
        return norms

    def stop_unless_finite(self):
        bad = (~torch.isfinite(self.losses[: self.count])).nonzero()
        (found,) = processes.reduce([len(bad) > 0], "max")
        if not found:
            return
        self.set_checkpoint_aside()
        if len(bad) == 0:
            raise FloatingPointError(
                f"the {self.history.loss_name} loss of another process became nan or inf: see "
                f"its message"
            )
        iteration = self.history.iterations - self.count + int(bad[0]) + 1
        if not torch.isfinite(self.masks).all():
            raise FloatingPointError(
                f"a mask of the training images has values that are not finite (found at iteration "
                f"{iteration}), so no model was saved: check the masks of the dataset"
            )
        low, high = self.output.float().aminmax()
        raise FloatingPointError(
            f"the {self.history.loss_name} loss became {self.losses[bad[0]].item():g} at iteration "
            f"{iteration} (outputs from {low:.4g} to {high:.4g}), {self.advice()}"
        )

    def refuse_weights_that_are_not_finite(self):
        """FloatingPointError if a step has spoiled a weight: the loss was computed before it."""
        for name, value in self.net.state_dict().items():
            if name in self.finite and not torch.isfinite(value).all():
                self.set_checkpoint_aside()
                raise FloatingPointError(
                    f"{name} of the network is not finite after iteration "
                    f"{self.history.iterations}, {self.advice()}"
                )

    def advice(self):
        rate = self.optimizer.param_groups[0]["lr"]
        return (
            f"so no model was saved: try a learning rate ten times smaller than {rate:g}, "
            f"clip_grad_norm=1.0, masks of 0 and 1, or another loss"
        )

    def refuse_empty_loader(self):
        size = loading.number_of_images(self.loader)
        raise ValueError(
            f"the training loader has no batch: {'0' if size is None else size} images, in batches "
            f"of {self.loader.batch_size}: give more images, or a loader without drop_last"
        )

    def estimate_time(self):
        """Log how long the training takes, measured on ten iterations after the first three."""
        done_here = self.history.iterations - self.first
        if done_here == 3:
            self.third = self.history.seconds  # the first iterations are slower
        if done_here == 13:
            self.log_time_left((self.history.seconds - self.third) / 10)

    def correct_estimate(self):
        """Log the time left again if the last interval was much faster or slower than expected."""
        number = self.iterations_left()
        if self.expected_end is None or not number:
            return
        each = (self.history.seconds - self.logged_at) / self.count
        expected = self.expected_end - self.history.seconds
        if abs(number * each - expected) > max(60, max(number * each, expected) / 3):
            self.log_time_left(each)

    def log_time_left(self, each):
        """Log the time left at `each` seconds for an iteration."""
        number = self.iterations_left()
        if not number:
            return
        self.expected_end = self.history.seconds + number * each
        self.dl_studio.log(
            f"Training takes about {number * each / 60:.1f} more minutes: {number} iterations of "
            f"{1000 * each:.0f} ms"
        )

    def iterations_left(self):
        """The number of further iterations; None in a training that is bounded by time."""
        return None if self.iterations is None else self.iterations - self.history.iterations

    @contextlib.contextmanager
    def off_the_clock(self):
        paused = time.perf_counter()
        yield
        self.clock += time.perf_counter() - paused

    # ---- files ----

    def save_history(self):
        path = self.dl_studio.run_dir / "losses.csv"
        backstage.write_or_warn(path, self.history.write_csv)

    def parts(self):
        """The objects whose state a continued training needs."""
        parts = {
            "net": self.net,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "criterion": self.criterion,
            "augment": self.augment,
        }
        return {name: part for name, part in parts.items() if hasattr(part, "state_dict")}

    def save_checkpoint(self):
        """Write everything that a continued training needs to give the same result."""
        self.saved_at = time.perf_counter()
        if not processes.is_main():
            return
        batches = self.batches
        state = {
            "must_fit": self.must_fit,
            "number_of_training": self.number_of_training,
            "parts": {name: part.state_dict() for name, part in self.parts().items()},
            "history": vars(self.history),
            "seed": batches.seed,
            "max_seconds": self.max_seconds,
            "fractions": torch.tensor(self.fractions, dtype=torch.float64),
            "epochs_done": self.epochs_done,
            "epoch_start": self.epoch_start,
            "inside_epoch": self.inside_epoch,
            "epoch_loss": self.epoch_loss,
            "losses": self.losses[: self.count].clone(),
            "terms": dict(self.terms),
            "logged_at": self.logged_at,
            "random_at_epoch_start": batches.start,
            "random": loading.random_states(batches.device, batches.generators),
        }
        if self.count and hasattr(self.criterion, "terms"):  # for the norms of their gradients
            state["output"], state["masks"] = self.output, self.masks
        write_checkpoint(self.dl_studio.run_dir, state)

    def continue_run(self):
        """Load the checkpoint of this folder, or the finished training; else begin anew."""
        dls, folder = self.dl_studio, self.dl_studio.run_dir
        state = processes.from_main(lambda: read_checkpoint(folder, dls.log))
        model = processes.from_main(lambda: self.read_finished_model(folder, state))
        if model is not None:
            self.net.load_state_dict(model)
            self.history = processes.from_main(lambda: self.read_history(folder))
            self.complete = True
            dls.log(f"This training is finished: its network is loaded from {folder / 'model.pt'}")
        elif state is None:
            dls.log(f"{folder} has no checkpoint yet: the training begins")
        else:
            self.load(state)
            left = ""
            if self.max_seconds:
                seconds = max(0.0, self.max_seconds - self.history.seconds)
                left = f"; {seconds:.0f} of {self.max_seconds:.0f} seconds are left"
            dls.log(f"Resuming after iteration {self.history.iterations}{left}")

    def read_finished_model(self, folder, state):
        """The weights in model.pt if the training is finished, that is, without a checkpoint."""
        path = folder / "model.pt"
        if state is not None or not path.exists():
            return None
        try:
            facts = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
            refuse_what_does_not_fit(folder, what_must_fit(facts), self.must_fit)
        except (FileNotFoundError, KeyError, json.JSONDecodeError) as error:
            raise ValueError(f"{folder}/settings.json cannot be read: {error!r}") from None
        return backstage.read_state_dict(path, self.net)

    def read_history(self, folder):
        self.history.read_csv(folder / "losses.csv")
        return self.history

    def load(self, state):
        """Continue from the state that save_checkpoint wrote."""
        folder = self.dl_studio.run_dir.absolute()
        refuse_what_does_not_fit(folder, state["must_fit"], self.must_fit)
        if state["number_of_training"] != self.number_of_training:
            raise ValueError(
                f"the checkpoint in {folder} is from training {state['number_of_training']} of "
                f"this script, but this is training {self.number_of_training}: to continue a "
                f"script of several trainings, give each a run_name of its own"
            )
        try:
            for name, part in self.parts().items():
                part.load_state_dict(state["parts"][name])
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"the checkpoint in {folder} is not of this network and optimizer ({reason}): "
                f"remove it to start again"
            ) from None
        device = self.losses.device
        vars(self.history).update(state["history"])
        self.batches.seed = state["seed"]
        self.max_seconds = state["max_seconds"]
        self.fractions = state["fractions"].tolist()
        self.epochs_done, self.epoch_start = state["epochs_done"], state["epoch_start"]
        self.inside_epoch = state["inside_epoch"]
        self.epoch_loss = torch.as_tensor(state["epoch_loss"]).to(device)
        self.count = len(state["losses"])
        if self.count > len(self.losses):  # the length of the epoch was not known
            self.losses = torch.zeros(2 * self.count, device=device)
        self.losses[: self.count] = state["losses"]
        self.terms.update(state["terms"])
        self.logged_at = state["logged_at"]
        self.output, self.masks = state.get("output"), state.get("masks")
        loading.set_random_states(state["random"], self.batches.device, self.batches.generators)
        if self.inside_epoch:
            self.batches.begin(
                self.epochs_done,
                skip=self.history.iterations - self.epoch_start,
                start=state["random_at_epoch_start"],
                now=state["random"],
            )

    def set_checkpoint_aside(self):
        """After NaN or infinity, the next start must not continue from this checkpoint."""
        folder = self.dl_studio.run_dir
        with contextlib.suppress(OSError):
            (folder / LATEST).replace(folder / "checkpoint-before-nan.pt")
        with contextlib.suppress(OSError):
            (folder / PREVIOUS).unlink()


# ---- the facts of a training --------------------------------------------------------------------


def loss_name(criterion):
    """The name of a loss: its own, or that of its class or function."""
    function = getattr(criterion, "func", criterion)  # of a functools.partial
    return getattr(criterion, "name", getattr(function, "__name__", type(function).__name__))


def training_facts(recorder, spec, *, scheduler, clip_grad_norm, bf16, evaluation_loader):
    """The content of settings.json: everything needed to repeat a run."""
    dls, net, loader = recorder.dl_studio, recorder.net, recorder.loader
    options = {
        "scheduler": scheduler.function if isinstance(scheduler, FractionSchedule) else scheduler,
        "augment": recorder.augment,
        "clip_grad_norm": clip_grad_norm,
        "evaluate_every": recorder.evaluate_every,
        "log_every": recorder.log_every,
    }
    optimizers = getattr(recorder.optimizer, "optimizers", [recorder.optimizer])
    return {
        "command": [word for word in sys.argv if word != "--resume"],
        "folder": str(Path.cwd()),
        "settings": {name: value for name, value in vars(dls).items() if name[0] != "_"},
        "network": {
            "class": type(net).__name__,
            "arguments": getattr(net, "arguments", None),
            "parameters": sum(p.numel() for p in net.parameters()),
        },
        "training": {
            "loss": recorder.history.loss_name,
            "loss_options": {
                name: value
                for name, value in getattr(recorder.criterion, "__dict__", {}).items()
                if isinstance(value, (str, int, float, tuple)) and name[0] != "_"
            },
            "options": {name: describe(value) for name, value in options.items()},
            "optimizer": " and ".join(type(optimizer).__name__ for optimizer in optimizers),
            "parameter_groups": [
                {name: value for name, value in group.items() if name != "params"}
                | {"parameters": sum(p.numel() for p in group["params"])}
                for group in recorder.optimizer.param_groups
            ],
            "precision": "bf16" if bf16 else "fp32",
            "evaluated_on": describe_images(evaluation_loader),
            "images": loading.number_of_images(loader),
            "batch_size": loader.batch_size,
            "max_seconds": recorder.max_seconds,
        },
        "data": {
            "class_names": spec["class_names"],
            "mask_values": spec["mask_values"],
            "source": data_source(backstage.innermost(loader.dataset)),
            "fingerprint": fingerprint(loader),
        },
        "machine": {
            "platform": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "device": device_name(dls.device),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "processes": processes.world_size(),
            "segstudio": backstage.__version__,
        },
    }


def describe_images(loader):
    """The number of images of a loader and their source, as text; None without a loader."""
    if loader is None:
        return None
    source = data_source(backstage.innermost(loader.dataset))
    return f"{loading.number_of_images(loader)} images, {source}"


def data_source(dataset):
    """Where the images come from, as text; it says so if SegStudio drew them."""
    if hasattr(dataset, "manifest"):
        return dataset.manifest.get("description") or "prepared COCO images"
    if getattr(dataset, "generated", False):
        return "generated by SegStudio, not the original"
    return type(dataset).__name__


def device_name(device):
    if device.type == "cuda":
        return f"the GPU ({torch.cuda.get_device_name(device)})"
    if device.type == "mps":
        return "the GPU (Apple MPS)"
    return f"the CPU ({torch.get_num_threads()} threads)"


def hint_at_other_programs(device):
    """What to do if other programs keep the processors busy; None if they do not.

    The threads of a convolution wait for each other, so one that another program delays stops all.
    """
    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    if device.type != "cpu" or threads == 1 or not hasattr(os, "getloadavg"):  # not on Windows
        return None
    load = os.getloadavg()[0]  # the mean number of running threads in the last minute
    if load < cores + 1:
        return None
    return (
        f"Other programs are running (load {load:.1f} on {cores} cores), and {threads} threads "
        f"then slow each other down. One thread may be faster: set OMP_NUM_THREADS=1"
    )


def describe(value):
    """A function or an object as text, without its place in memory."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def fingerprint(loader):
    """A hash of the first batch, unshuffled: it tells one dataset from another."""
    with backstage.random_numbers_kept():
        loading.seed_generators(0)
        batch = next(iter(backstage.plain_reader(loader)), None)
    if batch is None:
        return None
    images, masks = batch["image"].float(), batch["mask_tensor"].float()
    return backstage.short_hash(images.numpy().tobytes() + masks.numpy().tobytes())


def what_must_fit(facts):
    """{name: value}: the settings that both parts of an interrupted training must share."""
    training, data, network = facts["training"], facts["data"], facts["network"]
    groups = training["parameter_groups"]
    rates = [group["lr"] for group in groups]
    others = [{k: v for k, v in g.items() if k not in ("lr", "initial_lr")} for g in groups]
    names = {
        "network": [network["class"], network["arguments"], network["parameters"]],
        "loss": [training["loss"], training["loss_options"]],
        "optimizer": training["optimizer"],
        "learning rate": rates[0] if len(rates) == 1 else rates,
        "optimizer settings": others,
        "batch size": training["batch_size"],
        "number of images": training["images"],
        "data": data,
        "precision": training["precision"],
        "number of epochs": None if training["max_seconds"] else facts["settings"]["epochs"],
        **training["options"],
    }
    # What a file gives back: lists for tuples, text for objects.
    return json.loads(json.dumps(names, default=str))


def refuse_what_does_not_fit(folder, before, here):
    """ValueError, with the names, if a run was made with other settings than those given here."""
    different = [name for name in here if before.get(name) != here[name]]
    if different:
        changes = "; ".join(f"{n} is {here[n]} here and was {before.get(n)}" for n in different)
        raise ValueError(
            f"{folder} cannot be continued with other settings: {changes}. Give the settings of "
            f"that run, or begin a new one without resume"
        )
