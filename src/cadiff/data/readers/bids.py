"""fMRIPrep derivatives and events tables -> trial-wise betas.

Each run is modelled by itself, one run in memory at a time: volumes (*_desc-preproc_bold.nii.gz), surfaces
(*_hemi-L_space-fsaverage5_bold.func.gii and hemi-R) or grayordinates (*_space-fsLR_den-91k_bold.dtseries.nii). Where the
files lie: `bids_layout`; OpenfMRI's older layout: `openfmri_layout`; the estimation: `cadiff.data.glm`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from cadiff.data.glm import HRFS, Method, Units, trial_betas
from cadiff.data.readers.bids_layout import SubjectFiles, find_bids, read_facts
from cadiff.data.readers.bids_runs import MAX_TR_S, MIN_TR_S, ModelOptions, Run, prepare
from cadiff.data.readers.bids_surfaces import HEMISPHERES, open_series
from cadiff.data.readers.bids_tables import EventOptions
from cadiff.data.readers.bids_trials import AUTO, TestChoice, add_stimuli, join_trials
from cadiff.data.readers.bids_voxels import BRAIN, choose_voxels
from cadiff.data.readers.openfmri_layout import find_openfmri
from cadiff.data.writer import dataset_writer
from cadiff.errors import ConfigError, DataError

CONFOUNDS = ("motion", "non_steady_state")
UNITS = {
    "percent signal change": "percent of the run's mean at the plateau of an endless trial",
    "raw": "units of the BOLD file at the plateau of an endless trial",
    "t": "t value of the trial's beta, noise taken to be white",
}
NOT_STATED = "not stated by the source"
MAX_TEXT = 500
MAX_EVENT_S = 10_000.0

Names = str | int | Sequence[str | int] | None


def read_bids(
    source: Path,
    out: Path,
    *,
    layout: Literal["bids", "openfmri"] = "bids",
    subject: str | int | None = None,
    task: str | None = None,
    sessions: Names = None,
    space: str | None = None,
    desc: str | None = "preproc",
    bids: str | Path | None = None,
    bold_name: str = "bold",
    stimulus_column: str | None = None,
    trial_type_column: str = "trial_type",
    trial_types: Names = None,
    ignore: Names = None,
    nuisance: Names = None,
    label_column: str | None = None,
    duration_s: float | None = None,
    onset_shift_s: float = 0.0,
    images: str | Path | None = AUTO,
    test: Names = None,
    test_runs: int | Sequence[int] | None = None,
    test_sessions: Names = None,
    glm: Method = "lss",
    hrf: str = "spm",
    confounds: Names = "default",
    high_pass_s: float | None = 128.0,
    units: Units = "percent signal change",
    tr_s: float | None = None,
    slice_time_ref: float | None = None,
    cut_trials: Literal["refuse", "drop"] = "refuse",
    mask: str | Path | None = BRAIN,
    atlas: str | Path | None = None,
    atlas_names: str | Path | None = None,
    rois: Names = None,
    name: str | None = None,
) -> Path:
    """Makes a dataset of one subject's fMRIPrep derivatives. Paths may be relative to `source`; `*` fits anything in names.

    Args:
        source: the derivatives, or a folder that holds raw BIDS data and derivatives.
        out: the dataset folder to make.
        layout: "openfmri" for `sub001/BOLD/task001_run001/`, which has no confounds and no brain masks.
        subject, task, space: needed when there are several; space is for example "T1w", "fsaverage5", "fsLR:den-91k".
        sessions: session labels to import; all when absent.
        desc: `desc` entity of the BOLD files; null takes raw BIDS data as they are.
        bids: folder of the raw data with the events, where it is not found from `source`.
        bold_name: of layout "openfmri", the series' name without .nii.gz.
        stimulus_column: events column that names what was shown; `stim_file`, else `trial_type`, when absent.
        trial_type_column: events column that the next three options are about.
        trial_types: kinds of events that are trials; all that name a stimulus when absent.
        ignore: kinds that are no trials and not modelled, such as fixation.
        nuisance: kinds that are no trials but modelled, such as button presses.
        label_column: events column of stimulus labels; `trial_type_column` when absent.
        duration_s: how long every event lasted, in place of the column `duration`.
        onset_shift_s: seconds added to every onset, negative when the first volumes were discarded after events were timed.
        images: folder of pictures; "auto" is `stimuli/` of the raw data when stimuli come from `stim_file`; null: labels only.
        test: stimuli to test. With none of the three, the events' column `split` decides, and without it all is training.
        test_runs: numbers of runs to test.
        test_sessions: labels of sessions to test.
        glm: "lss", steadier when responses overlap, or "lsa".
        hrf: response function of nilearn's: one of `HRFS`. "spm" is the canonical one; a derivative costs a regressor more
            a trial (LSA) or two (LSS), and takes up shifts of timing.
        confounds: strategies ("motion" with 24 columns, "motion:basic", "wm_csf", "global_signal", "high_pass",
            "non_steady_state", "scrub") and columns; [] for none. Default: motion and non_steady_state.
        high_pass_s: cosines of longer periods are removed, unless confounds bring fMRIPrep's own; null: only the mean.
        units: "percent signal change", "raw" or "t".
        tr_s: time from volume to volume, where files lack it or contradict each other.
        slice_time_ref: when in its TR a volume is taken as measured, 0..1; from fMRIPrep's StartTime when absent.
        cut_trials: what to do with trials of which the run saw less than half of the response.
        mask: "brain" (voxels in the brain masks of all runs), a map whose values other than 0 are kept, or null for all.
        atlas: a map of region numbers: NIfTI, .dlabel.nii, or two GIFTI files with `{hemi}` in the path.
        atlas_names: table with index and name; when absent the one beside the atlas.
        rois: regions to keep; all voxels when absent.
        name: of the dataset; from dataset_description.json when absent.

    Raises:
        DataError: files that are missing, damaged or contradict each other; every message names the file.
        ConfigError: an option with a value it cannot have.
        MissingExtraError: nilearn is not installed.
    """
    events = EventOptions(
        stimulus_column,
        trial_type_column,
        _names(trial_types),
        _names(ignore),
        _names(nuisance),
        label_column,
        _number("duration_s", duration_s, 0.001, MAX_EVENT_S),
        _number("onset_shift_s", onset_shift_s, -MAX_EVENT_S, MAX_EVENT_S) or 0.0,
    )
    wanted = CONFOUNDS if confounds == "default" else _names(confounds)
    if _choice("layout", layout, ("bids", "openfmri")) == "openfmri":
        if confounds != "default" and wanted:
            raise ConfigError("layout=openfmri has no tables of confounds: leave confounds= away.")
        wanted = ()
    model = ModelOptions(
        _choice("glm", glm, ("lss", "lsa")),
        _choice("hrf", hrf, HRFS),
        wanted,
        _number("high_pass_s", high_pass_s, 1.0, MAX_EVENT_S),
        _number("tr_s", tr_s, MIN_TR_S, MAX_TR_S),
        _number("slice_time_ref", slice_time_ref, 0.0, 1.0),
        _choice("cut_trials", cut_trials, ("refuse", "drop")),
    )
    _choice("units", units, tuple(UNITS))
    chosen = TestChoice(_names(test), _numbers("test_runs", test_runs), _names(test_sessions))
    if layout == "openfmri":
        files = find_openfmri(source, subject=subject, task=task, bold_name=str(bold_name))
    else:
        files = find_bids(
            source,
            subject=subject,
            task=task,
            sessions=_names(sessions),
            space=None if space is None else str(space),
            desc=desc,
            bids=_path(source, bids),
        )
    series, runs, column = prepare(files, events, model)
    points, voxels = choose_voxels(
        files,
        series,
        mask=BRAIN if mask == BRAIN else _path(source, mask),
        atlas=_path(source, atlas),
        atlas_names=_path(source, atlas_names),
        rois=_names(rois),
    )
    trials = join_trials(runs, chosen)
    shown = images if images == AUTO else _path(source, images)
    about = {
        "source": source.name,
        "space": files.space,
        "kind_of_points": series.kind,
        "units": f"{units} ({UNITS[units]})",
        "glm": {
            **model._asdict(),
            "onset_shift_s": events.onset_shift_s,
            "noise": "white (ordinary least squares)",
        },
        "stimulus_column": column,
        "runs": [run.about for run in runs],
        "mask": Path(str(mask)).name if mask else "none",
        "atlas": Path(str(atlas)).name if atlas else "none",
        **_publication(files),
    }
    name = str(name or about["name"])
    del about["name"]
    with dataset_writer(
        out, name=name, subject=files.name, voxels=voxels, description=about, bad_voxels="drop"
    ) as writer:
        add_stimuli(writer, trials, files, column, shown)
        table = trials.drop(columns=["label", "cell", "source"]).dropna(axis="columns", how="all")
        for number, run in enumerate(tqdm(runs, desc="runs", disable=None)):
            writer.add_trials(_betas(run, points, units), table[trials["source"] == number])
    return out


def _betas(run: Run, points: Any, units: Units) -> Any:
    series = open_series(run.files.bold)
    try:
        return trial_betas(series.read(points), run.solution, units)
    except DataError as error:
        where = "" if str(series.path) in str(error) else f"{series.path}: "
        raise DataError(f"{where}{error}") from None


def _publication(files: SubjectFiles) -> dict[str, str]:
    """Name, licence, citation and pipeline, as dataset_description.json of the raw data and the derivatives have them."""
    found: dict[str, str] = {}
    for folder in (files.bids, files.derivatives):
        path = folder / "dataset_description.json" if folder else None
        if path is not None and path.is_file():
            facts = read_facts(path)
            makers = facts.get("GeneratedBy")
            maker = makers[0] if isinstance(makers, list) and makers and isinstance(makers[0], dict) else {}
            texts = {
                "name": facts.get("Name"),
                "licence": facts.get("License"),
                "citation": facts.get("HowToAcknowledge") or facts.get("DatasetDOI"),
                "pipeline": " ".join(str(maker[key]) for key in ("Name", "Version") if key in maker),
            }
            plain = {key: str(text or "").strip()[:MAX_TEXT] for key, text in texts.items()}
            found = {**{key: text for key, text in plain.items() if text}, **found}
    return {"name": "BIDS", "licence": NOT_STATED, "citation": NOT_STATED, "pipeline": NOT_STATED, **found}


def _path(source: Path, value: str | Path | None) -> Path | None:
    """A path of the user's, taken relative to the source if it is there."""
    if value is None:
        return None
    below = source / str(value)
    there = below.exists() or Path(str(below).replace("{hemi}", HEMISPHERES[0])).exists()
    return below if there else Path(str(value))


def _names(value: Names) -> tuple[str, ...]:
    if isinstance(value, (list, tuple)):
        return tuple(map(str, value))
    return () if value is None else (str(value),)


def _numbers(option: str, value: int | Sequence[int] | None) -> tuple[int, ...]:
    values = value if isinstance(value, (list, tuple)) else () if value is None else (value,)
    if strange := [item for item in values if isinstance(item, bool) or not isinstance(item, int)]:
        raise ConfigError(f"{option}={strange[0]!r}: expected whole numbers, for example {option}=[3, 4].")
    return tuple(values)  # pyright: ignore[reportReturnType]


def _number(option: str, value: Any, smallest: float, largest: float) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not smallest <= value <= largest:
        raise ConfigError(f"{option}={value!r}: expected a number from {smallest:g} to {largest:g}.")
    return float(value)


def _choice(option: str, value: Any, choices: tuple[str, ...]) -> Any:
    if value not in choices:
        raise ConfigError(f"{option}={value!r}: expected one of {', '.join(choices)}.")
    return value
