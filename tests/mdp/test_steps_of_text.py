"""Where a response continues, ends or is cut off: discounts, later values and the steps that count, by hand."""

import torch

from tdistill.mdp.steps import Steps

T, F = True, False


def three_responses() -> Steps:
    """Three tokens each: one response that ends, one that is cut off, one that ends and whose second token is off A_p. A fourth is shorter."""
    exists = torch.tensor([[T, T, T], [T, T, T], [T, T, T], [T, T, F]])
    return Steps(
        q_t=torch.zeros(4, 3, 2),
        teacher_logp_t=torch.zeros(4, 3, 2),
        legal_t=exists.unsqueeze(-1).expand(4, 3, 2),
        a_t=torch.tensor([[0, 1, 0], [1, 0, 0], [0, -1, 1], [0, 1, -1]]),
        mask_t=exists,
        terminal_t=torch.tensor([[F, F, T], [F, F, F], [F, F, T], [F, T, F]]),
    )


def test_a_step_has_the_discount_gamma_until_the_response_ends() -> None:
    want = [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.5, 0.0, 0.0]]
    assert three_responses().discount_t(0.5).tolist() == want
    assert three_responses().discount_t(0.0).eq(0.0).all()


def test_the_last_step_of_a_cut_off_has_no_successor_and_an_end_is_one() -> None:
    steps = three_responses()
    assert steps.continues_t.tolist() == [[T, T, F], [T, T, F], [T, T, F], [T, F, F]]
    assert steps.has_successor_t.tolist() == [[T, T, T], [T, T, F], [T, T, T], [T, T, F]]


def test_a_step_counts_if_its_token_is_a_candidate_and_it_has_a_successor() -> None:
    assert three_responses().counted_t.tolist() == [[T, T, T], [T, T, F], [T, F, T], [T, T, F]]


def test_the_value_of_the_next_state_is_discounted_and_the_end_has_its_own() -> None:
    v = torch.tensor([[2.0, 4.0, 6.0], [2.0, 4.0, 6.0], [2.0, 4.0, 6.0], [2.0, 4.0, 99.0]])
    steps = three_responses()
    assert steps.later(v).tolist() == [[4.0, 6.0, 0.0], [4.0, 6.0, 0.0], [4.0, 6.0, 0.0], [4.0, 0.0, 0.0]]
    assert steps.discounted_value(v, 0.5).tolist() == [[2.0, 3.0, 0.0], [2.0, 3.0, 0.0], [2.0, 3.0, 0.0], [2.0, 0.0, 0.0]]
    ends = [[2.0, 3.0, 10.0], [2.0, 3.0, 0.0], [2.0, 3.0, 10.0], [2.0, 10.0, 0.0]]
    assert steps.discounted_value(v, 0.5, end=20.0).tolist() == ends


def test_junk_in_padding_reaches_neither_value_nor_gradient() -> None:
    v = torch.full((4, 3), torch.nan)
    v[:3], v[3, :2] = 1.0, 1.0
    v.requires_grad_()
    later = three_responses().discounted_value(v, 0.5)
    assert later[3].tolist() == [0.5, 0.0, 0.0]
    (grad,) = torch.autograd.grad(later.sum(), v)
    assert grad.tolist() == [[0.0, 0.5, 0.5], [0.0, 0.5, 0.5], [0.0, 0.5, 0.5], [0.0, 0.5, 0.0]]
