"""The processes that a launcher has started are those that the config names, or a line says what to change."""

import pytest
import yaml

from hybrid_lightning import ConfigError
from hybrid_lightning.cli import main
from hybrid_lightning.distributed.launch import Launch, devices_as_launched, idle_gpus, launched
from tests.distributed.launchers import FORK, of_forks
from tests.processes import ROOT, succeed
from tests.small import CONFIG, changed, command, write

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
SLURM = {
    "SLURM_NTASKS": "4",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_JOB_ID": "4242",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
OWN = {"WORLD_SIZE": "4", "LOCAL_RANK": "0"}


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "1"}, None),  # a batch script without srun
        ({**SLURM, "SLURM_JOB_NAME": "bash"}, None),
        ({"WORLD_SIZE": "4"}, None),
        (TORCHRUN, ("torchrun", 4, 2)),
        ({**SLURM, **TORCHRUN, "WORLD_SIZE": "2"}, ("torchrun", 2, 1)),
        (SLURM, ("srun", 4, 2)),
        ({"SLURM_NTASKS": "1"}, ("srun", 1, 1)),
        (OWN, ("the variable WORLD_SIZE", 4, 0)),
        ({**OWN, "LOCAL_WORLD_SIZE": "4"}, ("the variable WORLD_SIZE", 4, 1)),
    ],
)
def test_the_launcher_is_known_from_its_variables(variables, found):
    launch = launched(variables)
    assert (launch[:3] if launch else None) == found


FOUR = Launch("srun", 4, 2, "srun --nodes={nodes} --ntasks-per-node={per_node}")


@pytest.mark.parametrize(
    ("devices", "nodes", "kept"),
    [("auto", 2, 2), (2, 2, 2), ("2", 2, "2"), ([0, 1], 2, [0, 1]), ("0,1", 2, "0,1"), (-1, 2, -1)],
)
def test_as_many_devices_as_were_started_are_taken(devices, nodes, kept):
    assert devices_as_launched(devices, nodes, FOUR) == kept


@pytest.mark.parametrize(("devices", "nodes"), [("auto", 1), (4, 1), (1, 2), ([0], 2), ("1", 4), (2, 1)])
def test_other_devices_than_were_started_are_refused_with_the_line_to_change(devices, nodes):
    with pytest.raises(ConfigError, match="4 processes, 2 on each of 2 nodes") as error:
        devices_as_launched(devices, nodes, FOUR)
    assert "Write --trainer.devices 2 --trainer.num_nodes 2, or start with srun --nodes=" in str(error.value)


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        (
            {"SLURM_NTASKS": "1", "SLURM_GPUS_ON_NODE": "4"},
            "4 GPUs on a node, but 1 process there, so that 3 of them are",
        ),
        ({**SLURM, "SLURM_GPUS_ON_NODE": "3"}, "but 2 processes there, so that 1 of them is idle. Write #SBATCH --nta"),
        ({**SLURM, "SLURM_GPUS_ON_NODE": "2"}, None),
        ({**SLURM, "SLURM_GPUS_ON_NODE": "gpu:4"}, None),
        (SLURM, None),
        ({**TORCHRUN, "SLURM_GPUS_ON_NODE": "4"}, None),
        ({**OWN, "SLURM_GPUS_ON_NODE": "4"}, None),
    ],
)
def test_gpus_of_a_job_that_no_process_takes_are_told(variables, says):
    launch = launched(variables)
    assert launch is not None
    told = idle_gpus(variables, launch)
    assert (told is None) is (says is None)
    assert (says or "") in (told or "")


def test_a_job_with_one_task_and_several_gpus_is_told_how_to_take_them(folder, monkeypatch):
    for name, value in {"SLURM_NTASKS": "1", "SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_ID": "4242"}.items():
        monkeypatch.setenv(name, value)
    config = changed({"trainer.accelerator": "auto"})
    with pytest.warns(
        UserWarning, match="trainer.devices: the job has 4 GPUs .* Write #SBATCH --ntasks-per-node=4, and"
    ):
        assert command("plan", config=config) == 0
    assert command("plan", "--trainer.devices", "1", config=config) == 0


def test_what_the_trainer_starts_itself_is_as_the_config_says():
    assert devices_as_launched("auto", 1, None) == "auto"
    assert devices_as_launched(3, 2, None) == 3


@pytest.mark.parametrize(
    ("variables", "words", "says"),
    [
        (TORCHRUN, "--trainer.devices 2", "torchrun has started 4 processes, 2 on each of 2 nodes, but the config has"),
        (TORCHRUN, "--trainer.devices 2", "or start with torchrun --nnodes=1 --nproc_per_node=2."),
        (SLURM, "--trainer.num_nodes 2 --trainer.devices 1", "srun --nodes=2 --ntasks-per-node=1."),
        (OWN, "--trainer.devices 2", "WORLD_SIZE has started 4 processes, but the config has devices: 2, num_nodes: 1"),
        ({"SLURM_NTASKS": "2", "SLURM_JOB_ID": "1"}, "", "was not started by srun, and would wait for the others"),
        ({**SLURM, "SLURM_NTASKS": "3"}, "", "3 tasks on 2 nodes with --ntasks-per-node=2; each node needs"),
        ({**TORCHRUN, "MASTER_PORT": "0"}, "", "MASTER_PORT: '0' is not a number above 0"),
        ({**SLURM, "SLURM_NTASKS": "many"}, "", "SLURM_NTASKS: 'many' is not a number"),
    ],
)
def test_a_mismatch_ends_with_a_line_before_anything_waits(variables, words, says, folder, monkeypatch, capsys):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert command("fit", *words.split()) == 2
    assert says in capsys.readouterr().err


def test_tasks_without_their_number_per_node_are_told_the_line_of_the_script(folder, monkeypatch, capsys):
    for name, value in SLURM.items():
        if name != "SLURM_NTASKS_PER_NODE":
            monkeypatch.setenv(name, value)
    assert command("fit") == 2
    assert "Write #SBATCH --nodes=2 and #SBATCH --ntasks-per-node=2, without --ntasks." in capsys.readouterr().err


def test_torchrun_starts_as_many_as_it_was_told_and_the_total_is_kept(folder):
    write(yaml.safe_dump(CONFIG))
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--no-python", *FORK)
    words = ("-m", "hybrid_lightning", "fit", "small.yaml", "--batch_size_total", "64", "--trainer.accelerator", "cpu")
    done = succeed(*torchrun, *words, cwd=folder, **of_forks())
    assert done.stdout.count("batch_size_total: 64 = 32 per device × 2 devices × 1 batch per step") == 1
    saved = yaml.safe_load((folder / "runs/small/version_0/config.yaml").read_text())
    assert saved["trainer"]["devices"] == 2


@pytest.mark.exhaustive
def test_a_job_of_two_tasks_is_requeued_by_its_script_until_it_ends_as_one_that_never_stopped(folder):
    import torch

    from tests.distributed import slurm

    callback = {"class_path": "tests.resume.signals.SignalAt", "init_args": {"batch": 3, "name": "SIGUSR1", "rank": 1}}
    options = {"trainer.max_epochs": 2, "trainer.limit_train_batches": 5, "trainer.callbacks": [callback]}
    ends = []
    for name, config in (("stopped", changed(options)), ("whole", changed({**options, "trainer.callbacks": []}))):
        place = folder / name
        place.mkdir()
        write(yaml.safe_dump(config), place / "small.yaml")
        starts = slurm.run_job(place, "small.yaml")
        assert starts == (3 if name == "stopped" else 1)
        assert [path.name for path in place.glob("runs/small/*")] == ["version_0"]
        ends.append(torch.load(place / "runs/small/version_0/checkpoints/last.ckpt", weights_only=True))
    stopped, whole = (end["state_dict"] for end in ends)
    assert ends[0]["global_step"] == ends[1]["global_step"] == 10
    assert all(torch.equal(value, whole[name]) for name, value in stopped.items())


@pytest.mark.parametrize("overlays", [["one_node"], ["several_nodes"], ["one_node", "fsdp2"]])
def test_each_overlay_goes_over_any_config(overlays, folder, monkeypatch, capsys):
    tasks = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1"}
    if overlays == ["several_nodes"]:
        tasks |= {"SLURM_NTASKS": "4", "SLURM_NNODES": "2"}
    for name, value in {**SLURM, **tasks}.items():
        monkeypatch.setenv(name, value)
    files = [str(ROOT / f"configs/cluster/{name}.yaml") for name in overlays]
    total = ("--batch_size_total", "128", "--data.batch_size", "32")
    assert main(["plan", write(yaml.safe_dump(CONFIG)), *files, *total]) == 0
    ranks = int(tasks["SLURM_NTASKS"])
    windows = 128 // 32 // ranks
    plural = "es" if windows > 1 else ""
    line = f"batch_size_total: 128 = 32 per device × {ranks} devices × {windows} batch{plural} per step"
    assert line in capsys.readouterr().out.splitlines()
