"""What has started the processes of a run, and whether the Trainer's devices and nodes are those that were started."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from hybrid_lightning.errors import ConfigError, counted

_INTERACTIVE = ("bash", "interactive")
"""Names of SLURM jobs in which commands are typed; there, as in Lightning, a process without srun is on its own."""


class Launch(NamedTuple):
    """The processes that a launcher has started."""

    launcher: str  # torchrun, srun, or the environment of one's own launcher
    tasks: int  # processes, one per device
    nodes: int
    start: str  # how to start a number of processes per node on a number of nodes, as a format

    @property
    def per_node(self) -> int:
        """Processes on each node."""
        return self.tasks // self.nodes


def launched(environment: Mapping[str, str]) -> Launch | None:
    """What the variables of a process say about its launcher; None where the Trainer starts the processes itself.

    Raises:
        ConfigError: If SLURM has tasks that nobody starts, or that are spread unevenly over the nodes; or if a variable
            is not a number, such as the port 0, at which the processes would wait for each other.
    """
    _number(environment, "MASTER_PORT")
    if "TORCHELASTIC_RUN_ID" in environment:  # first, as in Lightning: torchrun may be started by srun
        tasks = _number(environment, "WORLD_SIZE") or 1
        nodes = tasks // (_number(environment, "LOCAL_WORLD_SIZE") or tasks)
        return Launch("torchrun", tasks, nodes, "torchrun --nnodes={nodes} --nproc_per_node={per_node}")
    if "SLURM_NTASKS" in environment and environment.get("SLURM_JOB_NAME") not in _INTERACTIVE:
        return _of_slurm(environment)
    if "WORLD_SIZE" in environment and "LOCAL_RANK" in environment:
        tasks = _number(environment, "WORLD_SIZE") or 1
        per_node = _number(environment, "LOCAL_WORLD_SIZE")
        nodes = tasks // per_node if per_node else 0
        return Launch("the variable WORLD_SIZE", tasks, nodes, "WORLD_SIZE={tasks}")
    return None


def _number(environment: Mapping[str, str], name: str) -> int | None:
    """A variable as a number above 0; None if it is not there."""
    text = environment.get(name)
    if text is None:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{text!r} is not a number above 0. Start the processes anew.", name)
    return int(text)


def _of_slurm(environment: Mapping[str, str]) -> Launch:
    tasks = _number(environment, "SLURM_NTASKS") or 1
    nodes = _number(environment, "SLURM_NNODES") or 1
    start = "srun --nodes={nodes} --ntasks-per-node={per_node}"
    if tasks == 1:
        return Launch("srun", 1, 1, start)
    if not {"SLURM_STEP_NUM_TASKS", "SLURM_STEP_ID"} & environment.keys():
        # Lightning would take this process for the first of all, and wait for the others
        raise ConfigError(
            f"the job has {tasks} tasks, but this process was not started by srun, and would wait for the others. "
            f"Write srun before the command: srun python -m hybrid_lightning fit ...",
            "SLURM_NTASKS",
        )
    per_node = _number(environment, "SLURM_NTASKS_PER_NODE")
    if per_node is None or per_node * nodes != tasks:
        wanted = max(tasks // nodes, 1)
        given = "no --ntasks-per-node" if per_node is None else f"--ntasks-per-node={per_node}"
        raise ConfigError(
            f"srun has started {counted(tasks, 'task')} on {counted(nodes, 'node')} with {given}; each node needs "
            f"equally many. Write #SBATCH --nodes={nodes} and #SBATCH --ntasks-per-node={wanted}, without --ntasks.",
            "SLURM_NTASKS",
        )
    return Launch("srun", tasks, nodes, start)


def devices_as_launched(devices: Any, nodes: int, launch: Launch | None) -> Any:
    """The Trainer's devices per node, where ``auto`` are as many as processes were started there.

    Raises:
        ConfigError: If other numbers of devices and nodes are given than were started; the message has both remedies.
    """
    if launch is None:
        return devices
    per_node = launch.per_node if launch.nodes else launch.tasks // nodes
    if devices == "auto":
        devices = max(per_node, 1)
    count = _device_count(devices)
    if count is None or (count * nodes == launch.tasks and launch.nodes in (0, nodes)):
        return devices
    started = f"{launch.launcher} has started {counted(launch.tasks, 'process')}"
    if launch.nodes:
        started += f", {launch.per_node} on each of {counted(launch.nodes, 'node')}"
    right_nodes = launch.nodes or 1
    right_devices = launch.tasks // right_nodes
    again = launch.start.format(nodes=nodes, per_node=count, tasks=count * nodes)
    raise ConfigError(
        f"{started}, but the config has devices: {count}, num_nodes: {nodes}. Write --trainer.devices "
        f"{right_devices} --trainer.num_nodes {right_nodes}, or start with {again}.",
        "trainer",
    )


def idle_gpus(environment: Mapping[str, str], launch: Launch) -> str | None:
    """A line where a SLURM job has more GPUs on a node than srun has started processes there; None elsewhere."""
    gpus = environment.get("SLURM_GPUS_ON_NODE", "")
    if launch.launcher != "srun" or not gpus.isdecimal():
        return None
    count = int(gpus)
    idle = count - launch.per_node
    if idle <= 0:
        return None
    return (
        f"the job has {count} GPUs on a node, but {counted(launch.per_node, 'process')} there, so that {idle} of them "
        f"{'is' if idle == 1 else 'are'} idle. Write #SBATCH --ntasks-per-node={count}, and srun before the command; "
        f"or --trainer.devices {launch.per_node} where that is meant."
    )


def _device_count(devices: Any) -> int | None:
    """How many devices per node a setting of the Trainer names; None for all that are there."""
    if isinstance(devices, list | tuple):
        return len(devices)
    text = str(devices)
    if "," in text:
        return len([number for number in text.split(",") if number.strip()])
    return int(text) if text.isdecimal() else None
