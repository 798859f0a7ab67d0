import torch

from asr.featurizers.normalization import GlobalNorm, UtteranceNorm, frame_mask


def test_frame_mask():
    expected = [[True, True, False], [True, True, True], [False, False, False]]
    assert frame_mask(torch.tensor([2, 3, 0]), 3).tolist() == expected


def test_utterance_norm_equals_each_utterance_alone():
    random = torch.Generator().manual_seed(0)
    utterances = [3 + 2 * torch.randn(n, 5, generator=random) for n in (30, 3, 17)]
    padded = torch.full((3, 40, 5), float("nan"))
    for row, utterance in enumerate(utterances):
        padded[row, : len(utterance)] = utterance
    normalized = UtteranceNorm(5)(padded, torch.tensor([30, 3, 17]))
    for row, utterance in enumerate(utterances):
        expected = (utterance - utterance.mean(0)) / (utterance.var(0, correction=0) + 1e-5).sqrt()
        torch.testing.assert_close(normalized[row, : len(utterance)], expected, atol=1e-5, rtol=1e-5)


def test_utterance_norm_of_one_frame_is_zero():
    assert not UtteranceNorm(4)(torch.rand(1, 1, 4), torch.tensor([1])).any()


def test_global_norm():
    features = 4 + 3 * torch.randn(2, 500, 3, generator=torch.Generator().manual_seed(0))
    norm = GlobalNorm(3)
    torch.testing.assert_close(norm(features, torch.tensor([500, 500])), features)  # before it has statistics
    flat = features.reshape(-1, 3)
    norm.set_statistics(flat.mean(0), flat.std(0, correction=0))
    normalized = norm(features, torch.tensor([500, 500])).reshape(-1, 3)
    torch.testing.assert_close(normalized.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalized.std(0, correction=0), torch.ones(3), atol=1e-5, rtol=0)
    copy = GlobalNorm(3)
    copy.load_state_dict(norm.state_dict())
    assert torch.equal(copy(features, torch.tensor([500, 500])), norm(features, torch.tensor([500, 500])))


def test_feature_that_never_changes_stays_finite():
    norm = GlobalNorm(2)
    norm.set_statistics(torch.tensor([1.0, -13.8]), torch.tensor([1.0, 0.0]))
    assert norm(torch.tensor([[[1.0, -13.8]]]), torch.tensor([1])).tolist() == [[[0, 0]]]
