"""Many HCP subjects: in parallel, resumable, and one that is damaged does not stop the others."""

from __future__ import annotations

import pytest

from cadiff.artifacts import folder_checksums
from cadiff.data.dataset import BrainDataset
from cadiff.data.readers import hcp_many, read
from cadiff.data.readers.hcp import read_hcp
from cadiff.data.readers.hcp_many import import_hcp_subjects, subject_list
from cadiff.errors import ArtifactError, ConfigError, DataError
from layouts import hcp as layout

RUN = layout.S1200.format(run="REST1_LR")


@pytest.fixture
def cohort(tmp_path, rng):
    """(folder of four subjects in two layouts, options)"""
    areas, root = layout.write_dlabel(tmp_path / "areas.dlabel.nii"), tmp_path / "root"
    for name in ("100206", "100307", "100408"):
        layout.write_dtseries(layout.run_path(root, name, "REST1_LR"), layout.series(rng, 40))
    layout.write_dtseries(root / f"100610_{RUN}", layout.series(rng, 40))
    return root, {"parcellation": str(areas), "frames": 40}


def test_a_folder_of_subjects_becomes_a_folder_of_datasets_in_parallel(cohort, tmp_path):
    root, options = cohort
    out = read("hcp", root, tmp_path / "out", workers=2, **options)
    assert [path.name for path in sorted(out.iterdir())] == [
        f"sub-{n}" for n in (100206, 100307, 100408, 100610)
    ]
    single = read_hcp(root / "100307", tmp_path / "single", **options)
    many, one = (BrainDataset.open(folder) for folder in (out / "sub-100307", single))
    assert many.description["sha256"] == one.description["sha256"]
    assert many.description["subject"] == "sub-100307"


def test_one_bad_subject_is_named_at_the_end_and_a_second_run_does_only_what_is_missing(cohort, tmp_path):
    root, options = cohort
    bad = layout.run_path(root, "100307", "REST1_LR")
    content = bad.read_bytes()
    bad.write_bytes(content[:2000])
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"1 of 4 subjects were not imported.*100307 \(.*Download it again\)"):
        import_hcp_subjects(root, out, workers=1, **options)
    done = {path.parent.name: folder_times(path.parent) for path in out.glob("*/dataset_description.json")}
    assert set(done) == {"sub-100206", "sub-100408", "sub-100610"} == {path.name for path in out.iterdir()}
    bad.write_bytes(content)
    import_hcp_subjects(root, out, workers=1, **options)
    assert {name: folder_times(out / name) for name in done} == done
    assert len(list(out.iterdir())) == 4


def folder_times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_an_interrupt_keeps_what_is_complete_and_leaves_no_scraps(cohort, tmp_path, monkeypatch):
    root, options = cohort
    import_one, seen = hcp_many.import_one, []

    def interrupted(job):
        seen.append(job.name)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return import_one(job)

    monkeypatch.setattr(hcp_many, "import_one", interrupted)
    with pytest.raises(KeyboardInterrupt):
        import_hcp_subjects(root, tmp_path / "out", workers=1, **options)
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == ["sub-100206", "sub-100307"]


def test_other_options_do_not_overwrite_what_was_imported(cohort, tmp_path):
    root, options = cohort
    import_hcp_subjects(root, tmp_path / "out", workers=1, **options)
    before = folder_checksums(tmp_path / "out")
    with pytest.raises(
        DataError, match=r"4 of 4 subjects.*there is no other.*already exists and is never overwritten"
    ):
        import_hcp_subjects(root, tmp_path / "out", workers=1, window=20, **options)
    assert folder_checksums(tmp_path / "out") == before
    with pytest.raises(ArtifactError, match="already exists"):
        import_hcp_subjects(root, tmp_path / "out" / "sub-100206", workers=1, **options)


def test_a_list_of_subjects_chooses_and_names_those_that_are_not_there(cohort, tmp_path):
    root, options = cohort
    chosen = tmp_path / "ls_hcp1200"
    chosen.write_text("                           PRE 100206/\n                           PRE 999999/\n\n")
    with pytest.raises(DataError, match=r"1 of 2 subjects were not imported.*999999"):
        import_hcp_subjects(root, tmp_path / "out", subjects=chosen, workers=1, **options)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["sub-100206"]
    chosen.write_text("# nobody\n")
    with pytest.raises(DataError, match="names no subject"):
        subject_list(chosen)
    chosen.write_text("../../100206\n")
    with pytest.raises(DataError, match="is not the name of a subject"):
        subject_list(chosen)


def test_what_fails_for_everyone_fails_once_and_leaves_nothing(cohort, tmp_path):
    root, options = cohort
    with pytest.raises(DataError, match="There is no file"):
        import_hcp_subjects(root, tmp_path / "out", **(options | {"parcellation": tmp_path / "nowhere.npy"}))
    with pytest.raises(ConfigError, match="workers='x' must be a number of processes"):
        read_hcp(root, tmp_path / "out", workers="x", **options)
    with pytest.raises(DataError, match="4 of 4 subjects"):
        import_hcp_subjects(root, tmp_path / "out", workers=1, parcellation=options["parcellation"])
    assert not (tmp_path / "out").exists()


def test_a_folder_of_npz_is_a_folder_of_subjects(tmp_path, rng):
    for name in ("dummy_sub_01", "dummy_sub_02"):
        layout.write_npz(tmp_path / "HCP" / "npz" / name / "HCP_visual_voxel.npz", layout.series(rng, 40))
    out = read_hcp(tmp_path / "HCP", tmp_path / "out", frames=40, workers=1)
    assert sorted(path.name for path in out.iterdir()) == ["sub-dummy_sub_01", "sub-dummy_sub_02"]
