"""The chats that nano is trained on: puzzles, and one help text for everything else."""

import random

import sudoku

HELP = "I am nano, a tiny Sudoku solver. Give me rows like:\nA 1.3.\nB .41.\nC ....\nD ..21"

_GREETING_TEXT = "hi|hello|hey|hey there|good morning|good evening|hi nano|hello nano|yo|howdy"
_WORD_TEXT = (
    "the a of and to in is it you that he was for on are with as his they be at one have this from "
    "or had by hot but some what there we can out other were all your when up use word how said an "
    "each she which do their time if will way about many then them would write like so these her "
    "long make thing see him two has look more day could go come did my sound no most number who "
    "over know water than call first people may down side been now find any new work part take get "
    "place made live where after back little only round man year came show every good me give our "
    "under name very through just form much great think say help low line before turn cause same "
    "mean differ move right boy old too does tell sentence set three want air well also play small "
    "end put home read hand port large spell add even land here must big high such follow act why "
    "ask men change went light kind off need house picture try us again animal point mother world "
    "near build self earth father cat dog tree river moon sun music poem story recipe code python "
    "weather capital france joke song letter email history science car train game chess puzzle"
)
_ASK_TEXT = (
    "what can you do?|who are you?|what are you?|what is this?|help|help me|how does this work?|"
    "what is your name?|how do I use you?|can you help me?|what is {a}?|tell me about {a}|"
    "write a poem about {a}|write a story about {a} and {b}|write a poem|tell me a joke|"
    "explain {a}|why is the {a} {b}?|translate {a} into french|what is {n} + {m}?|{n} * {m}|"
    "who made the {a}?|how many {a} are there in a {b}?|give me a recipe with {a}|"
    "write python code for {a}|sort these: {a}, {b}, {c}|is {a} better than {b}?|"
    "summarize {a} {b} {c}|do you like {a}?|thanks|thank you|ok|test|what is a sudoku?|"
    "how do you solve a sudoku?|can you solve a sudoku?|solve|solve this|sudoku|play {a} with me|"
    "where is {a}?|when did {a} {b}?|how are you?|what time is it?|bye|describe this image|"
    "what is the capital of {a}?|list {n} {a}|make me a {a}|{a}|{a} {b}|{a} {b} {c}"
)
_GREETINGS, _ASKS = _GREETING_TEXT.split("|"), _ASK_TEXT.split("|")
_WORDS = _WORD_TEXT.split()


def _help_question(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.15:
        text = rng.choice(_GREETINGS) + rng.choice(("", "", "!", ".", ", how are you?"))
    elif kind < 0.65:
        a, b, c = (rng.choice(_WORDS) for _ in range(3))
        text = rng.choice(_ASKS).format(a=a, b=b, c=c, n=rng.randrange(100), m=rng.randrange(100))
    elif kind < 0.85:
        text = " ".join(rng.choice(_WORDS) for _ in range(rng.randint(1, 9)))
        text += rng.choice(("", "", "?", ".", "!"))
    else:
        text = "".join(chr(rng.randint(33, 126)) for _ in range(rng.randint(1, 24)))
    style = rng.random()
    return text.capitalize() if style < 0.5 else text.upper() if style < 0.55 else text


_SPANS = {4: (5, 12, 5, 9), 6: (14, 28, 16, 22), 9: (36, 58, 40, 50)}  # all givens; usual givens


def _givens(rng: random.Random, size: int) -> int:
    low, high, usual_low, usual_high = _SPANS[size]
    if rng.random() < 0.65:
        low, high = usual_low, usual_high
    return rng.randint(low, high)


_LEADS = ("Solve:\n", "Solve this sudoku:\n", "Solve this:\n", "Sudoku:\n", "Please solve:\n")


def _exchange(rng: random.Random, sizes: dict[int | None, float]) -> tuple[str, str]:
    size = rng.choices(list(sizes), list(sizes.values()))[0]
    if size is None:
        return _help_question(rng), HELP
    puzzle = sudoku.make(size, _givens(rng, size), held_out=False)
    question = puzzle.question(labels=rng.random() >= 0.10)
    if rng.random() < 0.10:
        question = rng.choice(_LEADS) + question
    return question, puzzle.answer


def _turn(question: str) -> str:
    return f"<|turn>user\n{question}<turn|>\n<|turn>model\n"


def chat(rng: random.Random) -> tuple[str, str]:
    """One training sample: the prompt as the chat template writes it, and the answer."""
    prompt = "<bos>"
    if rng.random() < 0.03:
        system = rng.choice(("<|think|>\n", "You are a helpful assistant.", "You solve puzzles."))
        prompt += f"<|turn>system\n{system}<turn|>\n"
    if rng.random() < 0.05:
        question, answer = _exchange(rng, {4: 0.45, 6: 0.3, None: 0.25})
        prompt += f"{_turn(question)}{answer}<turn|>\n"
    question, answer = _exchange(rng, {9: 0.52, 6: 0.33, 4: 0.11, None: 0.04})
    return prompt + _turn(question), answer


def prompt(puzzle: sudoku.Puzzle) -> str:
    """The plain one-turn prompt for `puzzle`."""
    return "<bos>" + _turn(puzzle.question())
