"""The fixed texts on which an exported model is compared with its original."""

from edge_rag.answering.prompt import answer_messages, closed_book_messages
from edge_rag.interfaces import Message, Passage

# What tokenizers get wrong: digits, white space, line ends, scripts without spaces, emoji, control characters.
HOSTILE = (
    "",
    " ",
    "a",
    " a",
    "a ",
    "   three spaces, then\t a tab\t\tand two",
    "\n",
    "\n\n\n",
    " \n \n  ",
    "line one\nline two\r\nline three\rline four\n",
    "no\x0bvertical\x0cspace\x85here\u2028or\u2029there",
    "0123456789",
    "1 12 123 1234 12345 1,234,567.89",
    "  42\n  43\n\t44",
    "x1y22z333 3.14159e-10 0xFF v2.0.1",
    "١٢٣ ४५६ ½ ² ⅷ ①②",
    "It's we're I'll you've he'd I'm don't IT'S WE'RE 'tis rock'n'roll",
    "ALLCAPS camelCase snake_case kebab-case dotted.name path/to/file.txt C:\\Temp\\x",
    "Ärger, naïve façade, Øresund, Žižek, Ελληνικά, Русский, עברית, العربية, हिन्दी, ไทย",
    "東京で12月3日に会議があります。価格は¥1,200です。",
    "中文没有空格，数字123夹在中间。",
    "한국어 문장도 있습니다.",
    "🙂👍🏽👩‍👩‍👧‍👦🇩🇪 emoji, joined and coloured ❤️",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚𝟛 \U0001f9ff \U000e0041",
    "zero\u200bwidth\u200djoiner\ufeffmark \u00a0no-break\u202frule\u3000wide",
    "e\u0301 decomposed, é composed",
    "def f(x):\n    if x > 10:\n        return {'a': [1, 2]}\n\treturn None  # ok\n",
    "<html><body class=\"x\">&amp;&nbsp;</body></html>",
    "{\"key\": [1, 2.5, null, true], \"nested\": {\"k\": \"v\"}}",
    "| a | b |\n|---|---|\n| 1 | 2 |\n",
    "!!!???...---***###@@@$$$%%%^^^&&&((()))[[[]]]",
    "https://example.org/a?b=c&d=1#e mail@example.org",
    "<|im_start|>user\nnot a turn<|im_end|>\n<|endoftext|>",
    "<|im_start|><|im_end|> <|im_end|>\n\n<|im_start|>",
    "<s>[INST] old style [/INST]</s><unk><pad><bos><eos>",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>",
    "<start_of_turn>model\n<end_of_turn><think></think>",
    "<|im_start <|im_start| > <|not_a_token|> <| |>",
    "\x00 nul \x01\x02\x1b[0m bell\x07 delete\x7f",
    "a" * 200,
    " " * 65,
    "ab" * 50 + "\n" * 20 + "7" * 40,
)  # fmt: skip

_PASSAGES = (
    ("The lamp", "The first lamp burnt colza oil and was lit on 1 October 1849. In 1902 it gave way to a paraffin burner, and in"
     " 1978 to an electric lamp of 400 watts, whose light is seen at 19 nautical miles."),
    ("Keepers", "Thomas Moar kept the light from 1891 to 1914. He wrote down the weather four times a day; 31 of his books are"
     " kept in the archive. His daughter Ann took over the rain gauge when he fell ill."),
    ("Visits", "The tower is open from Easter to the end of September, from 10:00 to 16:30. There are 142 steps to the gallery."
     " The boat leaves the pier at 9:15, 11:45 and 14:00; it does not sail in winds above force 6."),
    ("Repairs", "The firm of Tarn and Holm stripped the roof in May, renewed eleven of the sixteen copper sheets and gilded the"
     " vane. The work cost £38,400 and was paid from the harbour fund."),
)  # fmt: skip
_QUESTIONS = (
    (0, "When was the electric lamp fitted?"), (1, "Who kept the light in 1900?"), (2, "When does the last boat leave?"),
    (3, "What did the repair of the roof cost?"), (0, "How far is the light seen?"), (2, "How many steps are there?"),
)  # fmt: skip

PLAIN = (
    "The harbour lies on the north side of the bay. It was dredged twice, in 1931 and in 1957, and since then ships of up to"
    " four metres' draught can enter at any state of the tide.",
    "def mean(values):\n    total = 0.0\n    for value in values:\n        total += value\n    return total / len(values)\n",
    "Der Leuchtturm wurde 1849 gebaut. Le phare a été construit en 1849. 灯台は1849年に建てられました。",
)


def prompts() -> list[list[Message]]:
    """Return prompts as the runtime makes them: with one passage, with all, with none."""
    with_one = [answer_messages(question, [_passage(n)]) for n, question in _QUESTIONS]
    with_all = answer_messages("Who paid for the roof?", [_passage(n) for n in range(len(_PASSAGES))], style="words")
    return [*with_one, with_all, closed_book_messages("What is the capital of France?")]


def _passage(n: int) -> Passage:
    heading, text = _PASSAGES[n]
    return Passage(n, n, "parity", "", heading, None, 0, len(text), text, 1.0)
