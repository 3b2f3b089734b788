"""The choice of n:m groups written down plainly, group by group, to test the fast one against."""

import torch

WORD = 1 << 64


def choose(scores, kept, dims, n, m, share):
    """New masks, from scores and masks until now (both name -> tensor); dims: name -> dimension."""
    groups = []  # (name, position in the tensor of groups, scores, kept) in global order
    for name, score in scores.items():
        dim = dims[name]
        for position, (s, k) in enumerate(
            zip(_rows(score, dim, m), _rows(kept[name], dim, m), strict=True)
        ):
            groups.append((name, position, s, k))
    cost = [_sum(sorted(s.tolist())[: m - n]) for _, _, s, _ in groups]
    order = sorted(range(len(groups)), key=lambda g: (cost[g], bool(groups[g][3].all()), _key(g)))
    constrained = set(order[: round(share * len(groups))])
    rows = {name: [] for name in scores}
    for g, (name, _, s, k) in enumerate(groups):
        row = torch.ones(m, dtype=torch.bool)
        if g in constrained:
            out = sorted(range(m), key=lambda i: (s[i].item(), bool(k[i]), (i + _key(g) % m) % m))
            row[out[: m - n]] = False
        rows[name].append(row)
    return {
        name: _unrows(torch.stack(rows[name]), scores[name].shape, dims[name], m) for name in scores
    }


def _rows(tensor, dim, m):
    """Its groups, one a row, in the order of the tensor whose entries are the groups."""
    cut = tensor.unflatten(dim, (-1, m))
    return cut.movedim(dim + 1, -1).reshape(-1, m)


def _unrows(rows, shape, dim, m):
    inner = [*shape[:dim], shape[dim] // m, *shape[dim + 1 :], m]
    return rows.reshape(inner).movedim(-1, dim + 1).reshape(shape)


def _sum(values):
    total = torch.tensor(values[0])
    for value in values[1:]:
        total = total + torch.tensor(value)
    return total.item()


def _key(number):
    """splitmix64's finaliser, as a signed number."""
    key = (number + 0x9E3779B97F4A7C15) % WORD
    key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 % WORD
    key = (key ^ key >> 27) * 0x94D049BB133111EB % WORD
    key ^= key >> 31
    return key - WORD if key >= WORD // 2 else key
