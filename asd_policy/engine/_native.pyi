def propose(state: int, double: bool, kind: int, width: int, points: int, drafts: int) -> None: ...
def verify(
    state: int,
    double: bool,
    width: int,
    ahead: int,
    secants: bool,
    learn: bool,
    couple: bool,
    points: int,
    drafts: int,
    prediction: int,
) -> None: ...
def walk(state: int, double: bool, width: int, points: int, steps: int) -> None: ...
def settle(
    state: int,
    double: bool,
    width: int,
    secants: bool,
    learn: bool,
    points: int,
    steps: int,
    prediction: int,
) -> None: ...
