"""The talk's figures S1 to S6 about swap, from what scripts/bench/swap measured: its gains beside ours.

A gain is by how many per cent the swap device is above (or below) another system, as the median of the ratios in each round.
"""

# What the talk gives: gains in % over ZNSwap and over Infiniswap. "1.1x more" is 110 %.
TALK = {
    "S1": {"bandwidth": (81.7, 17.9)},
    "S2": {"bandwidth": (128, 20.4)},
    "S3": {"throughput": (53.3, 26), "completion": (-34.1, -10)},
    "S4": {"throughput": (110, 55.5), "completion": (-52.1, -33.1)},
    "S5": {"mean": (-31.9, -20), "p99": (-47.6, -33.4)},
    "S6": {"mean": (-51.4, -38.8), "p99": (-49.4, -31.8)},
}
TITLES = {
    "S1": "S1: random read, gain in bandwidth", "S2": "S2: random write, gain in bandwidth",
    "S3": "S3: 75 % of memory, throughput and completion time", "S4": "S4: 50 % of memory, throughput and completion time",
    "S5": "S5: 75 % of memory, latency", "S6": "S6: 50 % of memory, latency",
}
WORDS = {"bandwidth": "bandwidth", "throughput": "throughput", "completion": "completion time", "mean": "mean latency",
         "p99": "P99 latency"}
PEERS = ("znswap", "infiniswap")
PEER_NAMES = {"znswap": "ZNSwap", "infiniswap": "Infiniswap"}


def percent(ratio):
    return None if ratio is None else (ratio - 1) * 100


def figures(ratios):
    """`ratios` gives for (figure, quantity, peer) the ratio of the swap device's number to the peer's, or None."""
    for name, quantities in TALK.items():
        labels, ours, theirs = [], [], []
        for quantity, published in quantities.items():
            for peer, value in zip(PEERS, published):
                labels.append(f"{WORDS[quantity]}, over {PEER_NAMES[peer]}")
                ours.append(percent(ratios(name, quantity, peer)))
                theirs.append(value)
        if all(value is None for value in ours):
            continue
        yield {"id": name, "kind": "bar", "title": TITLES[name], "x": {"label": "quantity", "unit": ""},
               "y": {"label": "change", "unit": "%"},
               "series": [{"name": "measured", "x": labels, "y": ours},
                          {"name": "the talk", "x": labels, "y": theirs, "talk": True}]}


def summary(ratios):
    """The same as rows of a document's summary."""
    for name, quantities in TALK.items():
        for quantity, published in quantities.items():
            for peer, value in zip(PEERS, published):
                ours = percent(ratios(name, quantity, peer))
                if ours is not None:
                    yield {"label": f"{name}: {WORDS[quantity]}, over {PEER_NAMES[peer]}", "value": ours, "unit": "%",
                           "talk": value}
