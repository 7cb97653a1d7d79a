"""What a training says about its time while it runs."""

import pytest

from SegStudio import backstage


@pytest.fixture
def train_at(experiment, small_net, monkeypatch):
    """train_at(speed, ...): train 12 images in batches of 1; iteration k takes speed(k) seconds."""

    def run(speed, epochs=4, **options):
        segmenter = experiment(train=12, test=4, batch_size=1, epochs=epochs)
        now, step = 0.0, 0

        class Slow(segmenter.SegmentationLossMSE):
            def forward(self, output, mask):
                nonlocal now, step
                now, step = now + speed(step), step + 1
                return super().forward(output, mask)

        monkeypatch.setattr(backstage.time, "perf_counter", lambda: now)
        segmenter.custom_run_code_for_training_for_semantic_segmentation(
            small_net(), criterion=Slow(), **options
        )
        log = (segmenter.dl_studio.run_dir / "log.txt").read_text()
        return [line for line in log.splitlines() if line.startswith("Training takes")]

    return run


def test_the_time_of_a_training_is_said_once_if_the_speed_stays(train_at):
    assert train_at(lambda step: 30, log_every=6) == [
        "Training takes about 17.5 more minutes: 35 iterations of 30000 ms"
    ]


def test_the_estimate_follows_the_measured_speed(train_at):
    """The first iterations were slow, because another program was running; later it returns."""
    assert train_at(lambda step: 3 if 18 <= step < 36 else 30, log_every=6) == [
        "Training takes about 17.5 more minutes: 35 iterations of 30000 ms",
        "Training takes about 1.2 more minutes: 24 iterations of 3000 ms",
        "Training takes about 3.0 more minutes: 6 iterations of 30000 ms",
    ]


def test_a_small_change_of_the_speed_gets_no_further_estimate(train_at):
    assert len(train_at(lambda step: 3 if step < 24 else 4, log_every=6)) == 1


def test_after_the_last_iteration_no_time_is_left_to_estimate(train_at):
    assert len(train_at(lambda step: 30 if step < 42 else 3, log_every=6)) == 1


def test_a_training_bounded_by_time_needs_no_estimate(train_at):
    assert train_at(lambda step: 1, max_seconds=20, log_every=6) == []
