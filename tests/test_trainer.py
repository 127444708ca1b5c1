from lightning.pytorch.profilers import PassThroughProfiler, SimpleProfiler

from hybrid_lightning.trainer import NoProfiler
from tests.tiny import batches, hybrid, trainer


def test_a_trainer_that_profiles_nothing_makes_no_context_for_each_hook():
    runner = trainer(max_epochs=1)
    assert type(runner.profiler) is PassThroughProfiler
    runner.fit(hybrid("always"), batches())
    assert isinstance(runner.profiler, NoProfiler)
    assert runner.profiler.profile("one") is runner.profiler.profile("another")


def test_the_profiler_that_somebody_chose_sees_all_hooks():
    profiler = SimpleProfiler()
    runner = trainer(max_epochs=1, profiler=profiler)
    runner.fit(hybrid("always"), batches())
    assert runner.profiler is profiler
    hooks = [name.rpartition(".")[2] for name in profiler.recorded_durations]
    assert {"training_step", "on_train_batch_start", "on_before_optimizer_step"} <= set(hooks)
