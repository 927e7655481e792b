"""What a row of instants says about a limit. Instants are seconds, in order; a cost is one token."""


def over(instants, rate, burst):
    """Tokens above burst + rate * w, in the worst window of any length w."""
    level = worst = 0.0
    last = None
    for at in instants:
        if last is not None:
            level = max(level - rate * (at - last), 0.0)
        last = at
        level += 1
        worst = max(worst, level)
    return max(worst - burst, 0.0)


def most_in(instants, seconds):
    """The most instants of any window so long."""
    most = first = 0
    for last, at in enumerate(instants):
        while at - instants[first] >= seconds:
            first += 1
        most = max(most, last - first + 1)
    return most


def perfect(arrivals, rate, burst):
    """How many of the arrivals one token bucket over all hosts, asked by all at once, lets pass."""
    level, passed, last = float(burst), 0, None
    for at in arrivals:
        if last is not None:
            level = min(level + rate * (at - last), burst)
        last = at
        if level >= 1:
            level -= 1
            passed += 1
    return passed
