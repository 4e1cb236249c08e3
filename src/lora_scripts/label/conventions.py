"""What a caption leaves out, so that the LoRA learns it by itself: words for styles, and for a character's looks.

What every picture shares and no caption says goes into the trigger word; what a caption says stays something that can
be changed. Rules for English, on words and phrases only: they know no grammar, and leave alone what they do not know.
`CUT` stands where words went; `wording.close_gaps` makes a sentence of the rest.
"""

from __future__ import annotations

import re

CUT = "\0"

# --- style ------------------------------------------------------------------------------------------------------------

_STYLE = (
    "anime|manga|cartoon|comic(?: book)?|cyberpunk|steampunk|dieselpunk|solarpunk|vaporwave|synthwave|ukiyo-e|"
    "pixel art|chibi|art nouveau|art deco|pop art|low[- ]poly|cel[- ]shaded|photo-?realistic|hyper-?realistic|"
    "surrealistic|impressionist(?:ic)?|expressionist|cubist|gothic|retro|vintage|minimalist|painterly|psychedelic"
)
_TECHNIQUE = (
    "digital|oil|watercolou?r|acrylic|gouache|ink|pencil|charcoal|pastel|crayon|chalk|line|vector|concept|fan|pixel|3d|"
    "cg|cgi|2d|matte|flat|hand[- ]drawn|black and white|black-and-white|monochrome|colou?red|colou?rful|vibrant|"
    "detailed|intricate|beautiful|stunning|stylized|abstract|realistic|traditional|modern|classical|"
    "japanese|chinese|fantasy|sci-fi|science fiction|high quality|simple|cute"
)
_MEDIUM = (
    "paintings?|illustrations?|drawings?|sketch(?:es)?|artworks?|art|renderings?|renders?|prints?|watercolou?rs?|"
    "woodcuts?|engravings?|etchings?|posters?|images?|pictures?|photos?|photographs?|comics?|cartoons?|animes?|screenshots?"
)
# No word may be taken in two ways here (highly + detailed, highly detailed): n of them would be tried in 2^n ways.
_MADE = rf"(?:(?:(?:very|highly|{_STYLE}|{_TECHNIQUE})(?:[- ]styled?)?)\s+)*(?:{_MEDIUM})"
_STYLE_WORD = rf"(?:very |highly )?(?:{_STYLE}|photo-?realism|(?:{_TECHNIQUE}) (?:{_MEDIUM})|{_STYLE} (?:{_MEDIUM}))"
_END = r"(?=\s*(?:$|[,.;\0]|\s(?:with|on|at|and (?:a|an|the)|while|as)\b))"

_STYLE_PHRASES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # "a digital painting of", "this image shows", at the start of a sentence
        rf"(?:^|(?<=[.!?]\s))(?:this is |it is |there is )?(?:an?|the|this)\s+{_MADE}\s+"
        r"(?:of|showing|depicting|featuring|showcasing|portraying|(?:that |which )?(?:shows|depicts|features))\s+",
        rf"(?:^|(?<=[.!?]\s)){_MADE}\s+of\s+",
        # "in the style of Hokusai", "(drawn) in an anime style"
        r",?\s*\b(?:(?:done|drawn|painted|rendered|made|depicted)\s+)?in\s+(?:the\s+|a\s+)?styles?\s+of\s+[^,.;\0]+?"
        + _END,
        r",?\s*\b(?:(?:done|drawn|painted|rendered|made|depicted)\s+)?in\s+(?:(?:a|an|the|this)\s+)?"
        r"(?:(?!(?:in|on|at|of|with|and|by)\b)[\w-]+\s+){0,4}?[\w-]*(?:style|aesthetic)\b",
        rf",?\s*\b(?:the\s+)?(?:overall\s+)?(?:art\s+)?style\s+(?:is|of)\s+[^,.;\0]+{_END}",
        r",?\s*\bart(?:work)?\s+by\s+[^,.;\0]+",
        # "an anime-style girl", "an anime girl"
        r"\b[\w-]+-styled?\b(?=\s+\w)",
        rf"\b(?:{_STYLE})(?:\s+(?:style|art|themed))?\b(?=\s+(?!(?:of|in|on|at|and|or|with|by|from|is|are|style)\b)\w)",
    )
)
_STYLE_TAG = re.compile(
    rf"(?:{_STYLE_WORD}|(?:(?!(?:in|with|on|of|at|an?|the)\b)[\w'-]+ ){{0,4}}(?:art)?style|"
    rf"style of [\w' -]+|.*\((?:style|medium|artwork)\)|"
    r"(?:anime|cel|flat|game cg|retro|traditional) ?(?:colou?ring|colou?rs?|shading|media|screenshot)|"
    r"monochrome|gr[ea]yscale|spot colou?r|line ?art|sketch|illustration|painting|drawing|artwork|art|comic|4koma|"
    r"oil on canvas|oekaki|official art|concept art|fan ?art|3d|2d|cgi|(?:blender|octane|unreal) ?(?:render|engine)?|"
    r"realistic|realism|(?:(?:trending|featured) on )?artstation|deviantart|pixiv|(?:art )?by [\w' -]+|"
    r"(?:digital|oil|acrylic|ink|watercolou?r|pencil) (?:art|painting|drawing|illustration))",
    re.IGNORECASE,
)

# --- character --------------------------------------------------------------------------------------------------------

_COLOUR = (
    "black|white|brown|brunette|blonde?|red|ginger|auburn|chestnut|orange|yellow|gold|golden|green|teal|turquoise|blue|"
    "aqua|cyan|indigo|purple|violet|lavender|lilac|pink|magenta|gr[ea]y|silver|silvery|platinum|dark|light|pale|tan|"
    "tanned|fair|olive|bright|deep|vivid|icy|hazel|amber|crimson|scarlet|emerald|sapphire|ruby|multi-?colou?red|rainbow|"
    "two-tone|gradient|streaked|colou?red"
)
_SHAPE = (
    "very|short|medium|mid|long|length|shoulder|waist|chin|hip|knee|curly|wavy|straight|spiky|shaggy|frizzy|thick|thin|"
    "bushy|big|large|small|huge|tiny|wide|narrow|almond|slit|slitted|pointy|pointed|fluffy|furry|animal|cat|dog|fox|"
    "wolf|rabbit|bunny|bear|horse|cow|sheep|goat|mouse|elf|elven|demon|dragon|angel|fairy|bird|feathered|curled|"
    "freckled|smooth|round|full|inner|parted|asymmetrical"
)
_ADJ = rf"(?:(?:{_COLOUR}|{_SHAPE})\b(?:\s*,\s*|\s+and\s+|[\s-]+))"
_PART = r"(?:hair|bangs|hairdo|eyes?|eyebrows|eyelashes|pupils|skin|complexion|ears?|tails?|horns?|wings?|fur)"
_WORN = (  # "red hair ribbon" is worn, not grown
    r"(?![\s-]*(?:ribbons?|ornaments?|bows?|bands?|clips?|flowers?|ties?|pins?|tubes?|bobbles|scrunchies?|accessor\w+|"
    r"brush|dryer|sticks?|bells?|patch|contact|shadow|mask|make-?up|liner|piercings?|rings?|collar|muffs?|blush|lights?|"
    r"warmers?|phones?)\b)"
)
_ALONE = (
    r"(?:ponytails?|twin ?tails|twintails|pig ?tails|braids?|plaits|bangs|fringe|ahoge|sidelocks|dreadlocks|afro|"
    r"mohawk|(?:bob|hime|pixie|buzz|bowl|crew) cut|undercut|hair (?:buns?|intakes|rings)|double bun|widow's peak|"
    r"freckles|beard|moustache|mustache|goatee|stubble|sideburns|facial hair|heterochromia|fangs?|birthmark|"
    r"beauty mark|scars?|tattoos?|halo|horns|tail|wings|(?:pointy|animal|cat|elf) ears|"
    r"mole (?:under|on|above|below) (?:\w+ )?\w+)"
)
_STYLED = r"(?:(?:single|double|twin|side|high|low|short|long|small|french|two|full|thick|loose|messy|neat)\s+)"
_LOOK = (
    rf"(?:(?:a|an|the|her|his|their|its|some)\s+)?(?:{_ADJ}++{_PART}\b{_WORN}(?:\s+(?:over|between|covering)\s+(?:(?:one|her|"
    rf"his|their)\s+)?eyes?)?|{_ADJ}*+{_STYLED}*+{_ALONE}\b{_WORN})"
)
_LOOKS = rf"{_LOOK}(?:(?:\s*,\s*(?:and\s+)?|\s+and\s+){_LOOK})*"
_PERSON = (
    r"(?=\s+(?:\w+\s+){0,2}?(?:wo)?(?:man|men|girls?|boys?|lady|ladies|female|male|person|child|character|guy|elf)\b)"
)

_LOOK_PHRASES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # "Her long hair is tied back.", "with blue hair blowing in the wind": the clause goes
        rf"(?:^|(?<=[.,;] )|(?<=, and ))(?:her|his|their|the)\s+{_LOOKS}\s+(?:is|are|was|were|falls?|flows?|"
        r"blows?|hangs?|frames?|cascades?)\b[^,.;\0]*",
        rf"\b{_LOOKS}\s+(?:(?:that|which)\s+is\s+)?(?:tied|styled|pulled|worn|done|falling|flowing|blowing|"
        r"hanging|cascading|framing)\b(?:\s+(?:back|up|down|loose|freely))?(?:\s+(?:in|into|over|down|behind|around|to)\s+)?"
        r"(?:(?:(?:a|the|her|his|their|two|one)\s+)?(?:\w+\s+)?(?:wind|breeze|buns?|ponytails?|braids?|pigtails|shoulders?|back|"
        r"face|side|waist|knot|updo)\b)?",
        rf"\b(?:her|his|their|its|the)\s+{_PART}\s+(?:is|are)\s+(?>{_ADJ}*(?:{_COLOUR}|{_SHAPE}))\b(?=\s*(?:$|[,.;]))",
        r"\b(?:her|his|their)\s+hair\s+(?:\w+\s+)?in\s+(?:(?:a|two)\s+)?(?:\w+\s+)?(?:buns?|ponytails?|braids?|pigtails)\b",
        rf"(?<![\w-]){_LOOKS}",
        rf"(?<![\w-])(?:(?:{_COLOUR}|{_SHAPE})[\s,-]+)++(?:haired|eyed|skinned|eared|tailed|horned|winged|furred)(?=\s+\w)",
        rf"(?<![\w-])(?:blonde?|brunette|red-?headed|redhead|ginger|bald|bearded|freckled){_PERSON}",
    )
)
_LOOK_TAG = re.compile(
    rf"(?:{_LOOK}|{_ADJ}*+{_PART} (?:between|over) (?:one |\w+ )?\w+|"
    r"flat chest|(?:small|medium|large|huge|gigantic) breasts|"
    r"(?:one|two) side up|(?:dark|light|tan|pale)[- ]skinned (?:fe)?male|tan|tail|wings|fang|bald|drill hair|"
    r"(?:cat|dog|fox|wolf|rabbit|bunny|cow|horse|demon|dragon) (?:girl|boy)|elf|"
    r"(?:blonde?|brunette|redhead)|[\w -]+[- ](?:haired|eyed))",
    re.IGNORECASE,
)

PURPOSES = {"style": (_STYLE_TAG, _STYLE_PHRASES), "character": (_LOOK_TAG, _LOOK_PHRASES)}
"""What `--for` takes -> (a tag that goes whole, phrases of a sentence that go)."""


def leaves_out(tag: str, purpose: str) -> bool:
    """Whether a whole tag, or a whole piece between commas, is what a LoRA for `purpose` learns by itself."""
    return PURPOSES[purpose][0].fullmatch(tag) is not None


def cut_phrases(text: str, purpose: str) -> str:
    """A sentence with CUT in place of each phrase that a LoRA for `purpose` learns by itself."""
    text = ",".join(f" {CUT}" if leaves_out(piece.strip(), purpose) else piece for piece in text.split(","))
    for phrase in PURPOSES[purpose][1]:
        text = phrase.sub(f" {CUT} ", text)
    return text
