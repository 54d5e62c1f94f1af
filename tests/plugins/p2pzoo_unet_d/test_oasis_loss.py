"""The GAN loss of OASIS: a transcription with cross_entropy, balance, labels, LabelMix, other Ds, resume."""

import pytest
import torch
from fault_injection import STEP, SimulatedKill, after, outcome, simulate_kill
from p2pzoo_augment.diffaugment import DiffAugment
from p2pzoo_pix2pix.discriminators import PixelDiscriminator
from p2pzoo_unet_d.discriminators import OasisDiscriminator
from p2pzoo_unet_d.gan import Oasis, balanced_weights
from torch.nn import functional as F

from p2pzoo.data.augmentation import Augmentations
from p2pzoo.plugin import Batch, StepOutputs
from p2pzoo.utils.errors import UserError

SIDE, NUM_CLASSES, NO_LABEL = 8, 3, 255


def game(labels=None, D=None, count=2, **more):
    """StepOutputs with a D whose logits are not small. Two thirds of the pixels are of class 0; some have no label."""
    draw = torch.Generator().manual_seed(1)
    x, y, y_hat = torch.rand(3, count, 3, SIDE, SIDE, generator=draw) * 2 - 1
    if labels is None:
        labels = torch.randint(NUM_CLASSES, (count, SIDE, SIDE), generator=draw)
        labels = labels.where(torch.rand(labels.shape, generator=draw) < 0.5, 0)
        labels[0, :2] = NO_LABEL
    if D is None:
        torch.manual_seed(0)
        D = OasisDiscriminator(3, 3, (SIDE, SIDE), num_classes=NUM_CLASSES, width=4, levels=2)
        with torch.no_grad():
            D.to_classes.weight.mul_(10)
    return StepOutputs(Batch(x, y, ("a", "b")[:count], labels=labels), y_hat, D, **({"labels_for_D": True} | more))


def class_logits(out, y):
    return out.D.features(out.x, y)[0][-1]


def cross_entropy(logits, labels):
    """Of the public code: the weight of class c is the number of all pixels / (classes in the batch · pixels of c)."""
    one_hot = F.one_hot(labels.where(labels != NO_LABEL, NUM_CLASSES))[..., :NUM_CLASSES].float()
    occurrence = one_hot.sum((0, 1, 2))
    weights = torch.zeros(NUM_CLASSES + 1)
    weights[:NUM_CLASSES] = (labels.numel() / (occurrence * (occurrence > 0).sum())).nan_to_num(posinf=0)
    losses = F.cross_entropy(logits, labels, reduction="none", ignore_index=NO_LABEL)
    return (losses * weights[labels.where(labels != NO_LABEL, NUM_CLASSES)]).mean()


def mixed(out, chosen):
    """LabelMix, class by class and image by image. chosen[image][class]: taken from y; the last: pixels without one."""
    mask = torch.empty(out.batch.labels.shape)
    for i, labels in enumerate(out.batch.labels):
        for c in range(NUM_CLASSES):
            mask[i][labels == c] = chosen[i][c]
        mask[i][labels == NO_LABEL] = chosen[i][NUM_CLASSES]
    return mask[:, None]


def test_both_sides_equal_the_cross_entropy_of_n_plus_1_classes():
    out, gan = game(), Oasis(labelmix=0)
    fake = torch.full_like(out.batch.labels, NUM_CLASSES)
    of_fakes = F.cross_entropy(class_logits(out, out.y_hat), fake)
    expected = cross_entropy(class_logits(out, out.y), out.batch.labels) + of_fakes
    torch.testing.assert_close(gan.discriminator_loss(out), expected)
    out = out.for_generator()
    torch.testing.assert_close(gan.generator_loss(out), cross_entropy(class_logits(out, out.y_hat), out.batch.labels))


def test_labelmix_equals_a_transcription_with_loops(monkeypatch):
    out = game()
    chosen = [[1, 0, 1, 0], [0, 0, 1, 1]]
    monkeypatch.setattr(torch, "rand", lambda *size, **_: 1 - torch.tensor(chosen).float())
    mask = mixed(out, chosen)
    image = mask * out.y + (1 - mask) * out.y_hat
    target = mask * class_logits(out, out.y) + (1 - mask) * class_logits(out, out.y_hat)
    expected = F.mse_loss(class_logits(out, image), target)
    assert expected > 0.01
    for weight in (1.0, 10.0):
        value = Oasis(labelmix=weight).discriminator_loss(out) - Oasis(labelmix=0).discriminator_loss(out)
        torch.testing.assert_close(value, weight * expected)


def test_d_is_computed_three_times_in_its_update_with_the_gradients_of_the_sum_of_all_terms(monkeypatch):
    out, chosen = game(), [[1, 0, 1, 0], [0, 0, 1, 1]]
    D, fake = out._D, torch.full_like(out.batch.labels, NUM_CLASSES)
    mask = mixed(out, chosen)
    real_logits, fake_logits = class_logits(out, out.y), class_logits(out, out.y_hat)
    mixed_logits = class_logits(out, mask * out.y + (1 - mask) * out.y_hat)
    expected = cross_entropy(real_logits, out.batch.labels) + F.cross_entropy(fake_logits, fake)
    expected = expected + 10 * F.mse_loss(mixed_logits, mask * real_logits + (1 - mask) * fake_logits)
    gradients = torch.autograd.grad(expected, [*D.parameters()])

    calls = []
    D.body.register_forward_hook(lambda *_: calls.append(1))
    monkeypatch.setattr(torch, "rand", lambda *size, **_: 1 - torch.tensor(chosen).float())
    loss = Oasis().discriminator_loss(out)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, [*D.parameters()]), gradients)
    logged = out.real, out.fake
    assert len(calls) == 3, "also with the logits for the log"
    assert logged[0][0].shape == logged[1][0].shape == (2, 1, SIDE, SIDE)
    torch.testing.assert_close(logged, tuple(D(out.x, each, out.batch.labels) for each in (out.y, out.y_hat)))


@pytest.mark.parametrize("kind", ["pooled", "augmented"])
def test_labelmix_of_other_images_than_the_terms_computes_d_for_them(kind, monkeypatch):
    """ŷ of the pool has another x and other labels; augmentations of the pass of ŷ are not those of the mixed image."""
    plain = game()
    if kind == "pooled":
        out = game(pooled=(plain.x.flip(0), plain.y_hat, plain.batch.labels.flip(0)))
        image = lambda y: y  # noqa: E731
    else:
        out = game(augment=lambda pass_, x, y, labels: (x, y * {"D.real": 0.5, "D.fake": 0.9}[pass_], labels))
        image = lambda y: 0.5 * y  # noqa: E731
    chosen = [[1, 0, 1, 0], [0, 0, 1, 1]]
    monkeypatch.setattr(torch, "rand", lambda *size, **_: 1 - torch.tensor(chosen).float())
    mask, y, y_hat = mixed(plain, chosen), plain.y, plain.y_hat
    of_y, of_fake, of_mixed = (class_logits(plain, image(each)) for each in (y, y_hat, mask * y + (1 - mask) * y_hat))
    expected = F.mse_loss(of_mixed, mask * of_y + (1 - mask) * of_fake)
    value = Oasis(labelmix=1).discriminator_loss(out) - Oasis(labelmix=0).discriminator_loss(out)
    torch.testing.assert_close(value, expected)


def test_labelmix_draws_from_torch_and_only_with_a_weight():
    def values(gan):
        out = game(count=2)
        torch.manual_seed(3)
        return gan.discriminator_loss(out).item(), gan.discriminator_loss(out).item()

    assert values(Oasis()) == values(Oasis())
    first, second = values(Oasis())
    assert first != second
    first, second = values(Oasis(labelmix=0))
    assert first == second


def test_each_class_in_the_batch_has_the_same_weight():
    labels = torch.tensor([[[0, 0, 0, 0], [0, 2, 2, NO_LABEL]]])
    weights = balanced_weights(labels, 4)[:, 0]
    assert weights[labels == 0].sum() == pytest.approx(4)
    assert weights[labels == 2].sum() == pytest.approx(4)
    assert weights.mean() == 1
    assert weights[labels == NO_LABEL].item() == 0


def test_pixels_without_a_label_do_not_change_the_terms_of_the_classes():
    out = game()
    y = out.y.clone().requires_grad_()
    D = out._D
    batch = Batch(out.x, y, ("a", "b"), labels=out.batch.labels)
    with torch.no_grad():
        for part in D.parameters():
            part.zero_()
        D.to_classes.bias.copy_(torch.arange(NUM_CLASSES + 1.0))
    own = StepOutputs(batch, y, D, labels_for_D=True).for_generator()
    logits = own.fake[0]
    logits.retain_grad()
    Oasis().generator_loss(own).backward()
    assert not logits.grad[0, 0, :2].any()
    assert logits.grad[0, 0, 2:].all()


def test_a_batch_without_any_label_has_finite_losses():
    out = game(torch.full((2, SIDE, SIDE), NO_LABEL))
    assert Oasis().discriminator_loss(out).isfinite()
    assert Oasis().generator_loss(out.for_generator()).item() == 0


def test_labels_that_d_does_not_know_are_refused_in_one_line():
    out = game(torch.full((2, SIDE, SIDE), NUM_CLASSES))
    for loss, outputs in ((Oasis().discriminator_loss, out), (Oasis().generator_loss, out.for_generator())):
        with pytest.raises(UserError, match=r"\[discriminator\] num_classes = 3, but the dataset has labels up to 3"):
            loss(outputs)


class TestAnotherDiscriminator:
    """Its one map per scale has the classes real and fake."""

    def pixel_game(self, **more):
        torch.manual_seed(0)
        D = PixelDiscriminator(3, 3, (SIDE, SIDE), width=4, norm="none")
        return game(D=D, labels_for_D=False, **more)

    def test_the_loss_is_the_class_balanced_log_loss(self):
        out = self.pixel_game()
        weights = balanced_weights(out.batch.labels, NUM_CLASSES)
        expected = (weights * F.softplus(-out.real[0])).mean() + F.softplus(out.fake[0]).mean()
        torch.testing.assert_close(Oasis(labelmix=0).discriminator_loss(out), expected)
        out = out.for_generator()
        torch.testing.assert_close(Oasis().generator_loss(out), (weights * F.softplus(-out.fake[0])).mean())

    def test_augmentations_that_leave_the_labels_behind_are_refused(self):
        out = self.pixel_game(augment=lambda pass_, x, y: (x.flip(-1), y.flip(-1)))
        with pytest.raises(UserError, match=r"\[gan_loss\] oasis needs the labels .* use \[discriminator\] \"oasis\""):
            Oasis().discriminator_loss(out)


def test_labels_follow_augmentations_of_what_d_sees():
    """A batch that is shifted for D gives the loss of a batch that was shifted before."""
    augment = Augmentations({"a": DiffAugment(policy=("translation",))}, batch_size=2, seed=0)
    plain = game()
    random = augment.sample(0)
    view = lambda *given: augment.augment_for_d(random, *given)  # noqa: E731
    out = game(augment=view)
    shifted = view("D.real", plain.x, plain.y, plain.batch.labels)
    assert not torch.equal(shifted[2], plain.batch.labels)
    assert torch.equal(out.real_labels, shifted[2])
    fakes = view("D.fake", plain.x, plain.y_hat, plain.batch.labels)
    expected = StepOutputs(Batch(*shifted[:2], ("a", "b"), labels=shifted[2]), fakes[1], plain._D, labels_for_D=True)
    gan = Oasis(labelmix=0)
    torch.testing.assert_close(gan.discriminator_loss(out), gan.discriminator_loss(expected))


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param((), id="plain"),
        pytest.param(("train.pool_size=3",), id="pool", marks=pytest.mark.slow),
        pytest.param(("augmentations.a.use=diffaugment",), id="augmented", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_resumes_with_bit_identical_results(run, tmp_path, overrides):
    oasis = 'discriminator={use="oasis", num_classes=9, width=2, levels=2}', 'gan_loss={use="oasis"}'
    result = run(tmp_path / "whole", *oasis, *overrides)
    assert result.exit_code == 0, result.output
    with after(STEP, simulate_kill, call=3), pytest.raises(SimulatedKill):
        run(tmp_path / "killed", *oasis, *overrides)
    assert run(tmp_path / "killed", *oasis, *overrides).exit_code == 0
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


def test_a_recipe_with_too_few_classes_or_none_is_refused_in_one_line(run, tmp_path):
    for classes, message in (
        ("", "num_classes"),
        (", num_classes=2", "num_classes = 2, but the dataset has labels up"),
    ):
        oasis = f'discriminator={{use="oasis", width=2, levels=2{classes}}}', 'gan_loss={use="oasis"}'
        result = run(tmp_path, *oasis)
        assert result.exit_code == 2, result.output
        assert message in result.output.splitlines()[-1]
