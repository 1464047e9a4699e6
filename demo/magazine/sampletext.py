"""Invents a magazine: names, articles and comments, from the word lists and templates below.

A template holds ``{slots}``. A slot that a ``Story`` has bound (the town, the person) says the
same thing all through one article; any other is drawn anew from ``WORDS`` each time. All of it
hangs on one ``random.Random``, so that a seed always makes the same magazine.
"""

import re
from random import Random

WORDS = {
    "first": [
        "Ada", "Agnes", "Alba", "Alice", "Anselm", "Aurel", "Basil", "Beatrice", "Celeste",
        "Clement", "Cora", "Dario", "Delphine", "Edith", "Elio", "Emil", "Esther", "Fabian",
        "Flora", "Gaspard", "Greta", "Hugo", "Ines", "Iris", "Jonas", "Judith", "Karel", "Lena",
        "Leon", "Lucien", "Mabel", "Marguerite", "Marius", "Matteo", "Mina", "Nadia", "Nestor",
        "Odile", "Oscar", "Paula", "Petra", "Quentin", "Rosa", "Ruben", "Sabine", "Simon",
        "Stella", "Tamara", "Theo", "Ursula", "Vera", "Victor", "Wanda", "Yvette", "Zora",
    ],
    "last": [
        "Abelard", "Ashdown", "Barrow", "Bellamy", "Berger", "Birch", "Castell", "Corbin",
        "Dufour", "Eastwood", "Falk", "Ferrand", "Garland", "Gauthier", "Hale", "Holm", "Ivory",
        "Jansen", "Keller", "Lambert", "Larkin", "Lindqvist", "Marchetti", "Marlow", "Mercier",
        "Moreau", "Nightingale", "Novak", "Okafor", "Oliveira", "Pascal", "Pemberton", "Quill",
        "Renard", "Rivers", "Rosier", "Sandoval", "Sorel", "Tamm", "Thorne", "Valente", "Vidal",
        "Wells", "Weston", "Winter", "Zeller",
    ],
    "town": [
        "Vermeille", "Port Lannec", "Marlow Quay", "Saint-Aubry", "Castelmonte", "Ostermoor",
        "Lower Wick", "Belcastel-le-Haut", "Hartsmere", "Villanera", "Grauwinkel",
        "Little Amberley", "Roquefleur", "Tarn Bridge", "Silverholm", "Montcalme", "Old Harbour",
        "Fennborough", "Pietralba", "Lindenau", "Coldwater", "Sainte-Ondine", "Brackley Weir",
        "Valdoré", "Northgate", "Pont-sur-Vive", "Eschenbach", "Cala Verda", "Thornaby Cross",
        "Aigues-Claires",
    ],
    "age": ["forty-one", "fifty", "sixty-three", "thirty-six", "seventy-two", "fifty-eight"],
    "years": ["six", "nine", "eleven", "fourteen", "twenty", "twenty-three", "thirty", "forty"],
    "few": ["three", "four", "five", "six", "seven"],
    "season": ["spring", "summer", "autumn", "winter"],
    "weekday": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
    "another_day": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
    "weather": ["rain", "mist", "sunshine", "snow", "wind", "fog"],
    "hour": ["dawn", "first light", "midday", "tea time", "dusk", "closing time", "midnight"],
    "kind": ["quiet", "generous", "stubborn", "curious", "patient", "careful", "unhurried"],
    "thing": [
        "lamp", "notebook", "kettle", "radio", "clock", "teapot", "lantern", "toolbox",
        "umbrella",
    ],
    "place": [
        "bakery", "station", "library", "square", "harbour wall", "market hall", "post office",
    ],
    "relative": ["grandmother", "uncle", "older sister", "father", "neighbour", "first teacher"],
    "said": ["says", "tells me", "explains", "admits", "insists", "recalls"],
    # Music
    "instrument": [
        "guitar", "violin", "clarinet", "accordion", "double bass", "mandolin", "cello",
        "trumpet",
    ],
    "ensemble": ["quintet", "trio", "string band", "brass band", "choir", "dance orchestra"],
    "tune": ["slow waltz", "minor swing", "lullaby", "bolero", "old ballad", "last encore"],
    "venue": ["back room", "dance hall", "chapel", "bandstand", "cellar bar", "school gymnasium"],
    # Towns
    "feature": [
        "clock tower", "covered market", "ferry landing", "stone bridge", "tram depot",
        "bathhouse", "town hall", "lighthouse",
    ],
    "dweller": ["baker", "ferryman", "librarian", "stationmaster", "cobbler", "gardener", "mayor"],
    "street": ["Lantern Street", "Weavers' Row", "Quay Lane", "Chapel Hill", "Mill Passage"],
    # Food
    "dish": [
        "onion soup", "rye bread", "apple cake", "fish stew", "lentil salad", "plum tart",
        "bean stew", "saffron rice", "potato pie", "walnut bread",
    ],
    "ingredient": [
        "butter", "lemon", "garlic", "thyme", "good flour", "sea salt", "honey", "fennel",
    ],
    "eatery": ["canteen", "market stall", "station buffet", "corner café", "farm kitchen", "inn"],
    # Engineering
    "machine": [
        "swing bridge", "tide mill", "cable tram", "water clock", "pumping station", "signal box",
        "printing press", "paddle steamer", "canal lock", "telescope",
    ],
    "part": ["bearing", "gearwheel", "valve", "governor", "bolt", "counterweight", "gasket"],
    "trade": ["machinist", "surveyor", "draughtswoman", "welder", "lock keeper", "clockmaker"],
    # Outdoors
    "walk": [
        "ridge path", "coast path", "towpath", "forest loop", "old salt road", "valley trail",
    ],
    "creature": ["swift", "otter", "kingfisher", "hare", "owl", "heron", "nightingale", "swallow"],
    "outing": ["night walk", "long swim", "slow ride", "day in a canoe", "climb before breakfast"],
    "long_span": ["fifty", "sixty", "eighty", "a hundred"],
    "board": ["blackboard by the door", "slate", "strip of wallpaper", "wooden board"],
}  # fmt: skip

TAGS = {
    "music": [
        "Gypsy jazz", "Swing", "Guitars", "Violins", "Instrument makers", "Rehearsals",
        "Dance halls", "Songwriting", "Old records", "Street music", "Choirs", "Lessons",
    ],
    "towns": [
        "Markets", "Railways", "Harbours", "Public squares", "Libraries", "Trams", "Night life",
        "Neighbours", "Local history", "Bookshops", "Small hotels", "Festivals",
    ],
    "food": [
        "Bread", "Soup", "Baking", "Cheese", "Kitchen gardens", "Breakfast", "Coffee",
        "Family recipes", "Preserves", "Fish", "Street food", "Slow cooking",
    ],
    "engineering": [
        "Bridges", "Clocks", "Canals", "Steam", "Workshops", "Repair", "Tools", "Water mills",
        "Radio", "Maps", "Telescopes", "Printing",
    ],
    "outdoors": [
        "Walking", "Cycling", "Swimming", "Birds", "Rivers", "Forests", "Mountains", "Weather",
        "Night sky", "Camping", "Islands", "Gardens",
    ],
}  # fmt: skip

TITLES = {
    "music": [
        "The {instrument} that came home to {town}",
        "A {tune} for {town}",
        "{person} and the art of the {tune}",
        "In {town}, the {ensemble} plays until {hour}",
        "How {town} got its {ensemble} back",
        "What {person} hears in a {tune}",
        "The {ensemble} in the {venue}",
        "{weekday} nights at the {venue} in {town}",
        "Why every {instrument} in {town} sounds a little like {weather}",
        "Learning the {instrument} at {age}",
        "{years} years in one {ensemble}",
        "Clouds over the {venue}: a night of gypsy jazz in {town}",
        "A {kind} lesson in swing from {person}",
        "The {instrument} maker of {town}",
    ],
    "towns": [
        "{town} in the {weather}",
        "A {season} morning in {town}",
        "The {dweller} of {town}",
        "{town} and its {kind} {feature}",
        "Who winds the clock in {town}?",
        "The {feature} that {town} would not sell",
        "{few} doors on {street}",
        "How {town} learned to love its {feature}",
        "Last train to {town}",
        "{person}, the {kind} {dweller} of {town}",
        "A {weekday} on {street}, {town}",
        "What {town} does at {hour}",
        "The {place} at the end of {street}",
    ],
    "food": [
        "The {dish} of {town}",
        "In praise of {dish}",
        "{person} makes {dish} for two hundred",
        "{dish}, and a little {ingredient}",
        "Breakfast at the {eatery} in {town}",
        "A {season} table in {town}",
        "The {kind} cook of {town}",
        "What {town} eats at {hour}",
        "My {relative}'s {dish}",
        "The {eatery} that never changed its menu",
        "{few} ways with {ingredient}",
        "{person} on {ingredient}, patience and {dish}",
        "The {eatery} by the {feature} in {town}",
    ],
    "engineering": [
        "The {machine} of {town}",
        "{person} keeps the {machine} turning",
        "How to move a {machine}",
        "A {kind} repair at the {machine}",
        "The {trade} who heard a loose {part}",
        "One {part}, {years} years",
        "Why {town} still trusts its {machine}",
        "{town} rebuilds its {machine}, one {part} at a time",
        "The night shift at the {machine}",
        "In the workshop with {person}",
        "What a {part} can teach a {trade}",
        "{person}, {trade}, and the {machine} of {town}",
    ],
    "outdoors": [
        "A {outing} near {town}",
        "The {walk} from {town} to {town2}",
        "Waiting for the {creature}",
        "{town} to {town2} by {hour}",
        "The {creature} of {town}",
        "A {season} on the {walk}",
        "{person} walks the {walk} again",
        "What the {creature} knows about {weather}",
        "{few} days on the {walk}",
        "In the {weather}, above {town}",
        "The {kind} pleasure of a {outing}",
        "A tent, a {thing} and the {walk}",
    ],
}

STANDFIRSTS = {
    "music": [
        "For {years} years the {ensemble} of {town} has met on a {weekday}. Nobody remembers "
        "who began it.",
        "{person} does not teach scales. First comes the rhythm, then the tea, then the {tune}.",
        "An old {instrument}, a small {venue}, and a town that knows when to be silent.",
        "Some learn the {instrument} to be heard. In {town} they learn it to be asked to dinner.",
        "The {tune} lasts three minutes. Getting it right has taken {years} years so far.",
        "What happens when a whole {ensemble} listens, and why people walk for miles to be there.",
        "On rhythm, rain, and a {venue} with the best echo in the country.",
    ],
    "towns": [
        "It is not on the way to anywhere, and that is how {town} likes it.",
        "We spent {few} days by the {feature}, and came home with a {thing} and many questions.",
        "{person} has watched {town} change for {years} years, mostly for the better.",
        "A short guide to {street}, to the {feature}, and to the art of having nothing planned.",
        "The {feature} was to be pulled down in a week. That was {years} years ago.",
        "Every town has somebody who knows where things are. Here it is {person}.",
        "From {town2} it is one hour by train, and a good deal further in every other way.",
    ],
    "food": [
        "Everybody in {town} has an opinion on {dish}. {person} has the recipe.",
        "Some {ingredient}, a heavy pan, and no hurry at all: a visit to the {eatery}.",
        "It began as a way to use up what was left. Now people take the train for it.",
        "The menu at the {eatery} has one line. We tried all of it.",
        "{person} has cooked the same {dish} for {years} years, and is only now content with it.",
        "A plain dish, a good story, and a second helping of both.",
        "In {town} a meal begins with an argument about {ingredient}, and ends with coffee.",
    ],
    "engineering": [
        "It was built to last {long_span} years. {person} means to double that.",
        "Nobody notices the {machine} as long as it works, and that is the highest praise.",
        "A {part} no bigger than a coin held up half of {town}. This is how it was found.",
        "Oil, patience and a notebook full of sketches: a day with {person}.",
        "The plans said that it could not be done. The plans were drawn in {town2}.",
        "A visit to the people who keep the {machine} alive, mostly after {hour}.",
        "Good machines are quiet. Better ones can be mended by whoever is nearest.",
    ],
    "outdoors": [
        "Leave {town} at {hour}, take the {walk}, and bring more bread than you think you need.",
        "{person} has counted every {creature} on this shore for {years} years.",
        "It takes {few} hours with good boots. We recommend that you take the whole day.",
        "A slow report from the {walk}, with wet socks and no regrets.",
        "Nobody promised us a {creature}. We packed a second flask and waited.",
        "Between {town} and {town2} there is no road worth the name. Good.",
        "What {few} people, one map and rather a lot of {weather} taught us about {season}.",
    ],
}

OPENINGS = [
    "On a {weekday} in {season}, at {hour}, {town} smells of {weather} and fresh bread. "
    "{person} is already at work, with a {thing} under one arm and the door wide open.",
    "The first thing that {person} shows a visitor is not what the visitor came for. It is a "
    "{thing}, left behind by a {relative}, and it still works.",
    "You can reach {town} by train, by river, or by getting lost. I did the last of these, in "
    "the {weather}, and so I met {person} before I had seen anything else.",
    "There is a {place} in {town} where people leave things for each other: a {thing}, a jar of "
    "plums, a note. It was one of those notes that led me to {person}.",
    '"Sit down," says {person}, "it will take a while." It took {few} hours, and I would not '
    "have missed a minute of them.",
]

COMMON = [
    "The people here are {kind}, though they would not say so. They hold that work done well "
    "needs no announcement, and that a guest needs a chair before a question.",
    "It was not always so. {years} years ago the {place} was shut, the young were leaving, and "
    "the talk at {hour} was of what used to be.",
    '"We tried to hurry once," {surname} {said}. "It took twice as long."',
    "I had meant to stay for an afternoon. By {another_day} I had a key, a favourite bench, and "
    "an opinion about the new roof of the {place}.",
    "There are notes about all of it, in pencil, in {few} thick books. {surname} reads me a "
    "page from a {season} long ago, and it could have been written this morning.",
    "A {relative} began it and a {relative} nearly ended it. In between lie {years} years of "
    "small decisions, none of which looked important on the day.",
    "Outside, the {weather} comes and goes. Somebody has put a {thing} in the window, which in "
    "{town} means that visitors are welcome.",
    "On the wall hangs a photograph of everybody who ever helped. It has been taken again {few} "
    "times, each time from further away.",
    "The money comes from a yearly supper, a raffle, and a tin by the door of the {place}. It "
    "is never enough, and it has never run out.",
]

MIDDLES = {
    "music": [
        "The {instrument} is the third of its kind. The first went to sea with a {relative}; "
        "the second was lent to somebody in {town2}, who still sends a card every {season}.",
        "Rehearsal starts with la pompe, the rhythm that walks and never runs. Only when the "
        "whole {ensemble} breathes with it does {surname} nod to the {instrument}.",
        '"Play the {tune} as if you were telling it to one person," {surname} {said}. "If the '
        'others want to hear it, they will come closer." In the {venue}, they do.',
        "A good {instrument} needs ten years to open up, and a good player somewhat longer. The "
        "wood remembers dry summers; in {weather} you can hear it thinking.",
        "Towards the end they play a {tune} that has no name. It drifts like cloud over water, "
        "turns once in the light, and is gone before anybody thinks of clapping.",
        "Half of the {ensemble} cannot read music and the other half pretend that they cannot. "
        "What they share is an ear for the moment when a phrase is finished.",
        "The {venue} holds sixty people, or ninety who like each other. By {hour} it is always "
        "ninety, and the windows are open for those who came late.",
        "Nobody takes a solo in the first hour. It is a rule without an author, and visitors "
        "from {town2} break it exactly once.",
        '"Tune it to the room," {surname} {said}. The room is a little flat this evening, and '
        "so is the {tune}, and it has never sounded better.",
    ],
    "towns": [
        "From the {feature} you can see all of it: the roofs, {street}, the river, and the road "
        "to {town2} which nobody takes unless they must.",
        "The {dweller} knows everyone by their footsteps. On {street} this is not thought of as "
        "a talent, merely as good manners.",
        "On market days the stalls reach from the {place} to the {feature}. By {hour} they are "
        "gone, and only the sparrows stay behind to do the accounts.",
        "When {town2} built something taller, {town} planted a row of limes. The limes have "
        "been ahead on points ever since.",
        "The council meets in the {place}, since the chairs are better there. Decisions take "
        "{few} evenings, and then they hold for {years} years.",
        "At {hour} the lamps come on along {street}, one by one. They could all be lit at once; "
        "it was put to a vote, and one by one it stayed.",
        "There are two clocks in {town}, and they disagree by four minutes. Appointments are "
        "made by the slower one, out of kindness.",
        "On {street} the shutters are painted every ninth year, in whatever colour is left. "
        "Strangers think that it was planned.",
        '"People ask what there is to see," {surname} {said}. "I tell them to sit down first, '
        'and then it comes past."',
    ],
    "food": [
        "The {dish} starts the evening before. First there is {ingredient}, then time, and then "
        "more {ingredient} than any sensible book would allow.",
        '"People ask about the secret," {surname} {said}. "There is none. You stand beside the '
        'pan, and you do not walk away."',
        "At the {eatery} there are eleven tables and one menu, written on a {board}. Whoever "
        "arrives after {hour} gets soup and sympathy, both of them warm.",
        "In {town2} they make it with {ingredient}, and the two towns have not discussed the "
        "matter in public for {years} years.",
        "What is left of the {dish} goes into tomorrow's. {surname} likes to think that a "
        "spoonful of the very first pot is still in there somewhere.",
        "The {ingredient} comes up the hill on {weekday}s, on a cart with a bell. Children run "
        "out to meet it, and cooks pretend not to.",
        "Nothing is weighed. The flour is measured in cups that have lost their handles, the "
        "{ingredient} by eye, and the time by the church bell.",
        "On {weekday}s there is no {dish}, for no reason that anybody recalls. People come all "
        "the same, and talk about it.",
        '"Taste it now," {surname} {said}, "and once more in an hour. Then you will know what '
        'the hour is for."',
    ],
    "engineering": [
        "The {machine} has {few} thousand parts, and {surname} has had most of them in hand. "
        "The {part} alone takes a morning to reach and a minute to mend.",
        '"You listen first," the {trade} {said}. "A machine that is about to fail has been '
        'telling you so for weeks."',
        "The drawings were lost in a flood, so the {machine} was measured again, by hand, over "
        "one long {season}. The new drawings hang in the {place}, where children colour in the "
        "copies.",
        "A modern {part} would be cheaper and lighter. It would also last {few} years, and this "
        "one has done {years} without complaint.",
        "Engineers come from {town2} to see it, and ask for the manual. {surname} hands them an "
        "oil can.",
        "Everything here can be taken apart with {few} tools. That was the whole design, as the "
        "{trade} sees it, and the rest is only iron.",
        "There is a shelf of things that were removed and never missed. Each has a label with a "
        "date, and some of the labels have an apology.",
        "When it stopped, {few} winters ago, half of {town} stood around it with lamps. By "
        "morning the other half had brought soup, and it turned again.",
        '"Anybody can make it stronger," {surname} {said}. "The skill is to see where it wants '
        'to bend, and to let it."',
    ],
    "outdoors": [
        "The {walk} leaves by the {place} and is in no hurry to climb. After an hour {town} is "
        "a handful of roofs, and the only sound is the grass.",
        "We saw the {creature} at {hour}, at the place where we had stopped looking. It "
        "regarded us for a moment and went on with its day.",
        '"There is no bad {weather}," {surname} {said}, wringing out a sock. "There is only a '
        'long way to the next stove."',
        "Halfway to {town2} a bench faces the wrong way, towards the hill. Sit on it at {hour} "
        "and you understand the carpenter.",
        "Carry a map, water, and something to give away. Every {season} somebody needs your "
        "spare gloves, and every {season} somebody has spare gloves for you.",
        "The {creature} came back {few} years ago, and nobody knows why. {surname} suspects "
        "that it was simply asked nicely.",
        "At the ford you take off your boots, whatever the season. The stones are slippery and "
        "the water is honest, and on the other bank the bread tastes twice as good.",
        "There is a hut with {few} beds and a book for names. Read the last page before you "
        "sleep: somebody always warns you about the goat.",
        '"Go slowly," {surname} {said}, "and then a bit more slowly than that." It was the best '
        "advice of the day, and we took it at every gate.",
    ],
}

CLOSINGS = [
    "When I leave, at {hour}, {person} is looking for the {thing} again. It will turn up. In "
    "{town}, things do.",
    'I ask what comes next. {surname} thinks about it for as long as a kettle takes. "The '
    'same," is the answer, "but a little better."',
    "On the way to the station it begins to clear over {town}, and somebody, somewhere behind a "
    "shutter, is whistling.",
    "There is a train on {another_day}. I may miss it.",
]

COMMENTS = [
    "What a lovely piece. I grew up near {town} and could smell the {place} while I read it.",
    "My {relative} told this story rather differently, but I like your ending better.",
    "I have read this twice, the second time aloud. More like this, please!",
    "Small correction: the {place} in {town} opened a year earlier. Everything else is just "
    "right.",
    "We went there in {season} because of this article. It was full of {weather}, and perfect.",
    "Does anybody know whether visitors are welcome on {weekday}s?",
    "I never thought that I would read to the end of something like this. I missed my stop.",
    "{person} was my neighbour for {years} years and is exactly as {kind} as described.",
    "Thank you for writing about people who simply do their work well.",
    '"It took twice as long" is going up on the wall of our workshop.',
    'I printed this for my {relative}, who does not believe in screens. The verdict: "not bad".',
    "Beautifully told. I would have liked a map, though.",
    "Is there a recording, a recipe, a drawing, anything? I am not ready for it to be over.",
    "In {town} we have had one of these for {years} years and nobody ever wrote about us. No "
    "bitterness.",
    "Came for the headline, stayed for the {thing}.",
    "A {kind} article. I mean that as the highest praise.",
    "I disagree about the {weather}, but otherwise every word is true.",
    "Read it on the train to {town}, looked up, and there was the {place}. Magic.",
    "The part about the photograph made me ring my {relative}.",
    "We have the opposite problem in {town}: everything works and nobody talks about it.",
    "I read the magazine on {weekday} mornings, and this one made me late. Worth it.",
    "Could you write about {town} next? We have a {feature} and several opinions.",
    "Somewhere my {relative} is reading this and nodding slowly.",
]

BIOS = [
    "{first} writes from {town} about things that are mended, cooked or sung, and owns {few} "
    "instruments in various states of repair.",
    "A former {trade}, {first} took up writing at {age} and has not met a deadline without a "
    "{thing} nearby since.",
    "{first} grew up above the {eatery} in {town}, and has looked for soup of that kind ever "
    "since.",
    "{first} walks, listens and takes notes, in that order, and plays {instrument} when nobody "
    "asks.",
    "Before this magazine there was a {place}, a {ensemble} and a failed {dish}. {first} has "
    "written about all three.",
]


class Story(dict):
    """Fills the slots of templates: those that are bound keep their word, others are drawn."""

    def __init__(self, rng: Random, **bound: str) -> None:
        super().__init__(bound)
        self.rng = rng

    def __missing__(self, slot: str) -> str:
        return self.rng.choice(WORDS[slot])

    def tell(self, template: str) -> str:
        """Fill the template, mend its articles ("an owl") and begin it with a capital."""
        text = template.format_map(self)
        text = re.sub(r"\b([Aa]) (?=[aeiouAEIOU])", r"\1n ", text)
        text = re.sub(r"(?<=[.?!] )[a-z]", lambda match: match[0].upper(), text)
        return text[0].upper() + text[1:]


def full_name(rng: Random) -> str:
    """Invent a person."""
    return f"{rng.choice(WORDS['first'])} {rng.choice(WORDS['last'])}"


def biography(rng: Random, name: str, town: str) -> str:
    """Say two or three things about an author."""
    return Story(rng, first=name.split()[0], town=town).tell(rng.choice(BIOS))


def article(rng: Random, section: str) -> dict[str, str]:
    """Invent the title, standfirst and body of an article."""
    town, other = rng.sample(WORDS["town"], 2)
    person = full_name(rng)
    surname = person.split()[1]
    story = Story(rng, town=town, town2=other, person=person, surname=surname)
    # What the article is about must not change between its title and its end.
    subjects = (
        "thing instrument ensemble venue feature street dish eatery machine trade walk creature"
    )
    story.update({slot: rng.choice(WORDS[slot]) for slot in subjects.split()})
    middles = [
        *rng.sample(MIDDLES[section], rng.randint(5, 7)),
        *rng.sample(COMMON, rng.randint(3, 5)),
    ]
    rng.shuffle(middles)
    # Two templates to a paragraph, as a person would have it, and now and then a short one.
    paragraphs, rest = [story.tell(rng.choice(OPENINGS))], [story.tell(line) for line in middles]
    while rest:
        size = rng.choice([1, 2, 2])
        paragraphs.append(" ".join(rest[:size]))
        rest = rest[size:]
    paragraphs.append(story.tell(rng.choice(CLOSINGS)))
    return {
        "title": story.tell(rng.choice(TITLES[section])),
        "standfirst": story.tell(rng.choice(STANDFIRSTS[section])),
        "body": "\n\n".join(paragraphs),
    }


def comment(rng: Random) -> str:
    """Invent what a reader has to say: a sentence or two."""
    story = Story(rng, person=full_name(rng), town=rng.choice(WORDS["town"]))
    return " ".join(story.tell(line) for line in rng.sample(COMMENTS, rng.choice([1, 1, 2])))
