"""Counted operations against closed forms and PyTorch's own counter, and the arithmetic of the roofline."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from cadiff.contrast.transformer import Block
from cadiff.plan.cost import Cost, CostCounter, Op
from cadiff.plan.machines import Machine
from cadiff.plan.memory import count_step

N, WIDE, NARROW = 32, 64, 48
MACHINE = Machine("test", bf16=8e12, tf32=4e12, fp32=2e12, bandwidth=1e12, launch=1e-6)


def test_a_linear_layer_costs_two_operations_a_weight_and_sample_each_way():
    """Forward 2 N in out; back the same for the weight, and for the input where that asks for it."""

    def count(needs_input: bool):
        def step(layer):
            return layer(torch.zeros(N, WIDE, requires_grad=needs_input)).sum()

        return count_step(lambda: nn.Linear(WIDE, NARROW, bias=False), step, bf16=False).cost.flops

    once = 2 * N * WIDE * NARROW
    assert count(False) == 2 * once
    assert count(True) == 3 * once


def test_the_bytes_of_a_linear_layer_are_input_weight_and_output():
    def look(layer):
        with torch.no_grad():
            layer(torch.zeros(N, WIDE))

    cost = count_step(lambda: nn.Linear(WIDE, NARROW, bias=False), look, bf16=False).cost
    (product,) = [op for op in cost.ops if op.flops]
    assert product == Op(2 * N * WIDE * NARROW, 4 * (N * WIDE + WIDE * NARROW + N * NARROW), "fp32")


@pytest.mark.parametrize("ratio", [1.0, 4.0])
def test_an_attention_block_costs_its_closed_form(ratio):
    """Forward: qkv 6, output 2, mlp 4 ratio times B L D^2, and attention 4 B L^2 D."""
    batch, length, dim = 3, 17, 32

    def look(block):
        with torch.no_grad():
            block(torch.zeros(batch, length, dim))

    found = count_step(lambda: Block(dim, 4, ratio), look, bf16=False).cost.flops
    assert found == (8 + 4 * ratio) * batch * length * dim**2 + 4 * batch * length**2 * dim


def test_attention_is_counted_in_the_same_way_whatever_kernel_does_it():
    """Of the fused kernel's backward pass 5 products against 4 of the plain one: it recomputes the scores."""
    shape = (2, 4, 10, 8)
    product = 2 * 2 * 4 * 10 * 10 * 8
    with FakeTensorMode(), CostCounter() as counted:
        q, k, v = (torch.randn(shape, requires_grad=True) for _ in range(3))
        F.scaled_dot_product_attention(q, k, v).sum().backward()
    assert counted.cost.flops in (6 * product, 7 * product)


def test_a_network_of_convolutions_costs_what_pytorchs_counter_says():
    def build():
        return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 4, 3, stride=2))

    def step(net):
        return net(torch.randn(2, 3, 12, 12)).square().sum()

    net = build()
    with FlopCounterMode(display=False) as known:
        step(net).backward()
    found = count_step(build, step, bf16=False).cost
    assert found.flops == known.get_total_flops()
    assert {op.unit for op in found.ops if op.flops} == {"tf32"}


def test_bfloat16_is_told_from_float32_and_views_cost_nothing():
    with FakeTensorMode(), CostCounter() as counted:
        x = torch.zeros(4, 8)
        x.reshape(8, 4).T[:2].expand(3, 2, 8)
    assert sum(counted.cost.ops.values()) == 1  # the zeros
    half = count_step(lambda: nn.Linear(8, 8), lambda net: net(torch.zeros(2, 8)).sum(), bf16=True).cost
    assert {op.unit for op in half.ops if op.flops} == {"bf16"}


def test_in_place_ops_read_and_write():
    with FakeTensorMode():
        x, y = torch.zeros(100), torch.zeros(100)
        with CostCounter() as counted:
            x.add_(y)
    assert counted.cost.ops == {Op(0, 4 * 300, "fp32"): 1}


def test_the_time_of_an_op_is_that_of_the_slower_resource():
    work = Op(int(8e9), 1000, "bf16")  # 1 ms of operations
    move = Op(0, int(5e9), "fp32")  # 5 ms of bytes
    tiny = Op(10, 10, "fp32")  # a call
    assert MACHINE.op_by_op(_cost({work: 1})) == pytest.approx(1e-3)
    assert MACHINE.op_by_op(_cost({move: 2, tiny: 3})) == pytest.approx(10e-3 + 3e-6)
    assert MACHINE.floor(_cost({work: 3, move: 7, tiny: 9})) == pytest.approx(3e-3, rel=1e-6)
    assert MACHINE.floor(_cost({work: 3}), int(4e9)) == pytest.approx(4e-3)
    slow = Op(int(8e9), 1000, "fp32")
    assert MACHINE.floor(_cost({slow: 1})) == pytest.approx(4e-3)


def test_costs_add_and_multiply():
    one = _cost({Op(3, 5, "fp32"): 2})
    assert (one * 4 + one).flops == 30
    assert (one * 4 + one).bytes == 50


def _cost(ops):
    cost = Cost()
    cost.ops.update(ops)
    return cost
