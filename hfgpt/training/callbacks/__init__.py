"""See and steer a run: speed, samples, the terminal, live plots, spikes, checkpoints, early ends, TensorBoard and trackio.

Usable with any of transformers' Trainers, in a notebook, a terminal or a cluster's log file.

Notable: nothing here waits for the device or talks to other processes but where a log line is written, and for the one
number of a step that `LossWatchCallback` looks at; what a batch ramp changes from step to step is counted as it comes; and
a full disk below a picture, a sample or a reporter is a warning.
"""

from .common import logger, peak_device_memory_bytes, peak_host_memory_bytes, short_duration, short_number, write_line
from .curves import LIVE_PLOT_FILE, LivePlotCallback, LossCurveCallback, smoothed
from .loss_watch import EVENTS_FILE, LossWatchCallback, loss_watch_stop_reason
from .pruning import CheckpointPruningCallback
from .reporters import REPORTER_PACKAGES, TENSORBOARD_FOLDER, require_reporters, set_up_reporters
from .samples import SAMPLES_FILE, SampleCallback
from .stopping import MetricStoppingCallback
from .stragglers import NOTICEABLE_SECONDS, STRAGGLER_THRESHOLD, StragglerCallback
from .terminal import TerminalCallback
from .throughput import Progress, ThroughputCallback, training_flops_per_token


__all__ = [
    "EVENTS_FILE",
    "LIVE_PLOT_FILE",
    "NOTICEABLE_SECONDS",
    "REPORTER_PACKAGES",
    "SAMPLES_FILE",
    "STRAGGLER_THRESHOLD",
    "TENSORBOARD_FOLDER",
    "CheckpointPruningCallback",
    "LivePlotCallback",
    "LossCurveCallback",
    "LossWatchCallback",
    "MetricStoppingCallback",
    "Progress",
    "SampleCallback",
    "StragglerCallback",
    "TerminalCallback",
    "ThroughputCallback",
    "logger",
    "loss_watch_stop_reason",
    "peak_device_memory_bytes",
    "peak_host_memory_bytes",
    "require_reporters",
    "set_up_reporters",
    "short_duration",
    "short_number",
    "smoothed",
    "training_flops_per_token",
    "write_line",
]
