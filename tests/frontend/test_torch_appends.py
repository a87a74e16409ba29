"""Lists that loops, or some paths, append to: their length and last element in the loop, their elements behind it, on every number of steps."""

from __future__ import annotations

import pytest
import torch

from dlc.errors import DlcError
from dlc.frontend.torch_export import import_torch
from tests.frontend.torch_case import Fn, check

XS = [
    torch.tensor(v)
    for v in ([1.0, 2.0, -0.5], [-1.0, -2.0, 0.5], [0.1, 0.2, 0.3], [-4.0, -2.0, -0.5], [0.0, 0.0, 0.0], [4.0, 3.0, 2.0], [-9.0, -9.0, -1.0])
]


def decodes_up_to_a_length(x):
    tokens = [1]
    while len(tokens) < 6:
        x = x * 1.1 + tokens[-1] * 0.1
        tokens.append(int(x.argmax()))
        if tokens[-1] == 2:
            break
    return torch.tensor(tokens)


def decodes_up_to_a_token(x):
    tokens, scores = [int(x.argmax())], []
    while len(tokens) < 9 and tokens[-1] != 1:
        x = x * 1.1 + tokens[-1] * 0.1 - torch.tensor([0.3, 0.0, 0.1])
        tokens.append(int(x.argmax()))
        scores.append(x.max())
    return torch.tensor(tokens), sum(scores, torch.zeros(())) / max(len(scores), 1)


def decodes_for_steps(x):
    tokens = [1]
    for _ in range(8):
        x = x * 1.1 + tokens[-1] * 0.1 - 0.2
        tokens.append(int(x.argmax()))
        if tokens[-1] == 2 or len(tokens) > 5:
            break
    return torch.tensor(tokens), torch.tensor([len(tokens), tokens[-1], tokens[-3] if len(tokens) > 2 else -1])


def decodes_tensors(x):
    tokens = [x.argmax()]
    while len(tokens) < 6:
        x = x * 1.1 + tokens[-1] * 0.1 - 0.2
        tokens.append(x.argmax())
        if tokens[-1] == 2:
            break
    return torch.stack(tokens)


def adds_to_the_last(x):
    out = [0.5]
    while out[-1] < 3 and len(out) < 20:
        out.append(out[-1] + abs(float(x[0])) + 0.1)
    return torch.tensor(out), torch.tensor([out[-1], len(out), sum(out)])


def in_a_loop_inside(x):
    out, n = [1], 0
    while x.sum() < 20 and n < 10:
        n, m = n + 1, 0
        while m < out[-1] and m < 4:
            m += 1
            x = x + 0.5 * len(out)
        out.append(m + 1)
    return torch.tensor(out), x


def by_another_name(x):
    out, n = [1], 0
    also = out
    while x.sum() < 20 and n < 10:
        n += 1
        out.append(n * 2)
        x = x + also[-1] + len(also)
    return torch.tensor(also), x


def truth_in_the_loop(x):
    out, n = [], 0
    while x.sum() < 20 and n < 10:
        n += 1
        if out:
            x = x + 2
        x = x + 1
        out.append(n)
    return len(out), x


def two_in_a_step(x):
    out = []
    while len(out) < 10 and x.sum() < 5:
        x = x + 1
        out.append(3)
        out.append(x.sum().item())
    return torch.tensor(float(sum(out))), x


def second_of_last_before_the_loop(x):
    tokens = [7, 8]
    while x.sum() < 5 and x[0] < 100:
        x = x + 1
        tokens.append(int(x.argmax()))
    return torch.tensor([tokens[-2], tokens[-1], tokens[0], tokens[1]])


def tensors_before_the_loop(x):
    out = [x * 9, x * 8]
    while x.sum() < 5 and x[0] < 100:
        x = x + 1
        out.append(x)
    return out[-2], out[-1], out[0]


def there_on_some_paths(x):
    items, marks = [], [1]
    if x.sum() > 0:
        items.append(x)
        marks.append(2)
    if x[0] > 0.05:
        items.append(x + 1)
    if x[1] < 1:
        marks.append(3)
    items.append(x * 2)
    items.append(x * 3)
    return items[0], items[1], items[-2], x * marks[-1]


def written_where_it_is_there(x):
    x, items = x * 1, []
    z = x + 5
    if x.sum() > 0:
        items.append(x)
    items.append(z)
    items[0].mul_(2)
    return x, z


CASES = [v for v in list(globals().values()) if getattr(v, "__module__", "") == __name__]


@pytest.mark.parametrize("program", CASES, ids=lambda f: f.__name__)
def test_any_number_of_steps(program):
    for example in (XS[0], XS[5]):  # several steps, and none
        check(program, example, others=[(x,) for x in XS])


def test_a_growing_list_keeps_its_loop():
    """It is recorded, not unrolled: one loop, however many steps there may be."""
    for program in (decodes_up_to_a_length, decodes_for_steps):
        text = str(import_torch(Fn(program).eval(), (XS[0],)).program)
        assert text.count("while ") + text.count("for ") == 1, text


def beyond_the_last(x):
    tokens = []
    while x.sum() < 5:
        x = x + 1
        tokens.append(int(x.argmax()))
    return torch.tensor([tokens[3], tokens[-4]])


def test_a_place_that_is_not_there_is_an_error():
    import dlc

    exe = dlc.compile(Fn(beyond_the_last).eval(), (XS[6],))
    assert exe(XS[6]) is not None
    for x in (XS[0], XS[1], torch.full((3,), 2.0)):  # one step, three, and none
        with pytest.raises(IndexError):
            beyond_the_last(x)
        with pytest.raises(DlcError, match="outside"):
            exe(x)


def a_slope_from_data(x):
    return torch.nn.functional.leaky_relu(x, x.abs().mean().item())


def test_a_number_from_data_where_the_operator_needs_a_known_one_is_refused():
    with pytest.raises(DlcError, match="'negative_slope' is a number computed from data") as caught:
        import_torch(Fn(a_slope_from_data).eval(), (XS[0],))
    assert caught.value.code == "DLC0200"


def of_two_types(x):
    out = []
    while x.sum() < 5:
        x = x + 1
        out.append(3)
        out.append(x.sum().item())
    return out[0] if out else 1


def written(x):
    out = [1]
    while x.sum() < 5:
        x = x + 1
        out.append(int(x.argmax()))
        out[-1] += 1
    return torch.tensor(out)


def shortened(x):
    out = [1]
    while x.sum() < 5:
        x = x + 1
        out.append(2)
        if len(out) > 3:
            out.pop()
    return len(out)


@pytest.mark.parametrize("program", [of_two_types, written, shortened], ids=lambda f: f.__name__)
def test_what_is_not_followed_is_refused(program):
    with pytest.raises(DlcError) as caught:
        import_torch(Fn(program).eval(), (XS[0],))
    assert caught.value.code == "DLC0221"


def unbounded(x):
    n, token = 0, None
    while n < 2 or (token := int(x.argmax())) != 2:
        n += 1
        if n > 2:
            x = x * token
        x = x * 0.9 + torch.tensor([0.0, 0.1, 0.2])
    return x


def test_a_loop_that_nothing_bounds_is_not_unrolled_for_ever():
    with pytest.raises(DlcError) as caught:
        import_torch(Fn(unbounded).eval(), (XS[0],))
    assert caught.value.code in ("DLC0221", "DLC0222", "DLC0223")


def counted_up(x):
    """What the programs below do something to: a list of an unknown number of numbers."""
    out, n = [3], 0
    while x.sum() < 5:
        n += 1
        x = x + 1
        out.append(n)
    return out


def taken_apart(x):
    *rest, _last = counted_up(x)
    return len(rest)


def taken_apart_inside(x):
    _, (*rest, _last) = 1, counted_up(x)
    return len(rest)


def taken_apart_in_a_loop(x):
    for *rest, _last in [counted_up(x)]:
        x = x + len(rest)
    return x


def matched(x):
    match counted_up(x):
        case [a]:
            return x * a
        case [a, *_rest]:
            return x - a


def as_text(x):
    return x * len(f"{counted_up(x)}")


def as_text_by_a_template(x):
    return x * len("%s" % counted_up(x))  # noqa: UP031  # what is tested


def sum_of_another_type(x):
    out = []
    while x.sum() < 5:
        x = x + 1
        out.append(x > 1)
    return sum(out, torch.zeros(3, dtype=torch.int32))


def of_another_type_before_the_loop(x):
    out = [x.argmax()]
    while x.sum() < 5:
        x = x + 1
        out.append(x.max())
    return torch.tensor(out)


def stacked_of_another_type(x):
    out = [x.argmax()]
    while x.sum() < 5:
        x = x + 1
        out.append(x.max())
    return torch.stack(out)


def of_two_shapes(x):
    out = []
    while x.sum() < 5:
        x = x + 1
        out.append(x)
        out.append(x[:2])
    return out[0] if out else x


TAKEN = [
    taken_apart, taken_apart_inside, taken_apart_in_a_loop, matched, as_text, as_text_by_a_template,
    sum_of_another_type, of_another_type_before_the_loop, stacked_of_another_type, of_two_shapes,
]  # fmt: skip


@pytest.mark.parametrize("program", TAKEN, ids=lambda f: f.__name__)
def test_what_would_find_one_element_or_another_type_is_refused(program):
    """Python itself finds one element where there are as many as there were steps; without steps there are other types."""
    with pytest.raises(DlcError) as caught:
        import_torch(Fn(program).eval(), (XS[0],))
    assert caught.value.code == "DLC0221"


def fronts(x):
    out, n = [3, 4], 0
    while x.sum() < 5 and n < 9:
        n += 1
        x = x + 1
        out.append(n)
    first, second, *rest = out
    (a, *more), b = out, n
    return torch.tensor([first, second, len(rest), a, len(more), b])


def sum_of_narrow_numbers(x):
    out = []
    while x.sum() < 5 and x[0] < 100:
        x = x + 1
        out.append(x.to(torch.int32))
    return sum(out, torch.zeros(3, dtype=torch.int32))


@pytest.mark.parametrize("program", [fronts, sum_of_narrow_numbers], ids=lambda f: f.__name__)
def test_what_is_known_of_it_can_be_taken(program):
    check(program, XS[0], others=[(x,) for x in XS])


def caught(x):
    out = counted_up(x)
    try:
        return x * out[2]
    except IndexError:
        return x


def test_a_place_that_may_not_be_there_is_not_caught():
    with pytest.raises(DlcError) as error:
        import_torch(Fn(caught).eval(), (XS[0],))
    assert error.value.code == "DLC0224"


def exchanged(x):
    a, b = [0], [0]
    while x.sum() < 5:
        x = x + 1
        a, b = b, a
        a[0] += 1
    return torch.tensor([a[0], b[0]])


def exchanged_and_longer(x):
    a, b = [0], [0]
    while x.sum() < 5:
        x = x + 1
        a, b = b, a
        a.append(1)
    return torch.tensor([len(a), len(b)])


def another_name_in_the_loop(x):
    a, b = [0], [0]
    while x.sum() < 5:
        x = x + 1
        b = a
        a.append(1)
    return torch.tensor([len(a), len(b)])


def started_anew(x):
    a, n = [0], 0
    while x.sum() < 5:
        x = x + 1
        n, b, a = n + 1, a, [0]
        b.append(n)
    return len(a)


def exchanged_in_a_dict(x):
    d = {"a": [0], "b": [0]}
    while x.sum() < 5:
        x = x + 1
        d["a"], d["b"] = d["b"], d["a"]
        d["a"].append(1)
    return torch.tensor([len(d["a"]), len(d["b"])])


EXCHANGED = [exchanged, exchanged_and_longer, another_name_in_the_loop, started_anew, exchanged_in_a_dict]


@pytest.mark.parametrize("program", EXCHANGED, ids=lambda f: f.__name__)
def test_lists_that_change_places_are_refused(program):
    """Each holds what the other did, so nothing seemed to change."""
    with pytest.raises(DlcError, match="is another list after a step") as caught:
        import_torch(Fn(program).eval(), (XS[0],))
    assert caught.value.code == "DLC0223"


def shorter_in_order(x):
    out = []
    while x.sum() < 5:
        x = x + 1
        out.append(int(x.argmax()))
    return x * (2 if out > [] else 3)


def shorter_on_a_path(x):
    out = [1]
    if x.sum() > 0:
        out.append(2)
    return x * (2 if [1] < out < [2] else 3)


@pytest.mark.parametrize("program", [shorter_in_order, shorter_on_a_path], ids=lambda f: f.__name__)
def test_the_order_of_lists_of_no_known_length_is_refused(program):
    """Python would compare what stands for elements, or lengths without it."""
    with pytest.raises(DlcError) as caught:
        import_torch(Fn(program).eval(), (XS[0],))
    assert caught.value.code == "DLC0221"
