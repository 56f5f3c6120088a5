"""Plain requests to a chat model: everyday topics times a few ways to ask, in five splits that share no topic.

No request asks for a form, a length in words or a letter case, so that any constraint can be put beside it. Topics are
grouped by what can be said about them, since a form such as "Where do {x} grow?" fits only some. Standard library only.
"""

import random

SPLITS = ("train", "anchor", "layer", "scoring", "behaviour")

# {x} is the topic as it stands in the lists below: plural animals and plants, bare activities, objects with their
# article.
FORMS: dict[str, tuple[str, ...]] = {
    "animal": (
        "Describe {x} to a young child.",
        "What do {x} eat and how do they find it?",
        "Where do {x} live?",
        "Write a short story about {x}.",
        "Tell me a few facts about {x}.",
        "Explain why some people are fond of {x}.",
        "How do {x} take care of their young?",
        "Write a short diary entry by someone who saw {x} for the first time.",
        "What can people learn from watching {x}?",
    ),
    "food": (
        "Describe the taste and the smell of {x}.",
        "Explain in a few sentences why people like {x}.",
        "Give three tips for making good {x}.",
        "Write a short story about a cook who is famous for {x}.",
        "What goes well with {x}?",
        "Write a short letter to a friend about {x}.",
        "How would you serve {x} to guests?",
        "Write a short advertisement for {x}.",
        "How do you make {x} at home?",
    ),
    "place": (
        "Describe a busy morning at {x}.",
        "What can visitors do at {x}?",
        "Write a short story that takes place at {x}.",
        "What might you hear and smell at {x}?",
        "Explain how people should behave at {x}.",
        "Write a short letter about a day at {x}.",
        "What is it like to work at {x}?",
        "How is {x} different at night?",
        "Write a short poem about {x}.",
    ),
    "job": (
        "Describe a normal day in the life of {x}.",
        "What skills does {x} need?",
        "Write a short story about {x}.",
        "What is hard about being {x}?",
        "Give some advice to someone who wants to become {x}.",
        "Write a short note to thank {x}.",
        "Why is the work of {x} important?",
        "What would you like to ask {x}?",
        "Write a short speech in which {x} talks to a class of pupils.",
    ),
    "activity": (
        "Give three tips for someone who wants to try {x}.",
        "Explain in a few sentences why people enjoy {x}.",
        "How can a beginner start with {x}?",
        "Write a short story about a person who loves {x}.",
        "What does one need for {x}?",
        "What are the benefits of {x}?",
        "Write a short letter that invites a friend to try {x}.",
        "Describe how {x} feels for the first time.",
        "What mistakes do beginners make with {x}?",
    ),
    "object": (
        "Describe {x} to someone who has never seen one.",
        "What is {x} good for?",
        "Write a short story about {x} that got lost.",
        "How should one take care of {x}?",
        "What should I look for when I buy {x}?",
        "Write a short advertisement for {x}.",
        "Imagine you are {x} and tell me about your day.",
        "What could a person use instead of {x}?",
        "Explain in a few sentences why {x} makes a good gift.",
    ),
    "nature": (
        "Explain {x} to a ten-year-old child.",
        "What do people find beautiful or frightening about {x}?",
        "Write a short poem about {x}.",
        "How do scientists study {x}?",
        "Write a short story about a family and {x}.",
        "What effect can {x} have on daily life?",
        "Tell me a few facts about {x}.",
        "Write a short talk about {x} for a school class.",
    ),
    "science": (
        "Explain {x} in simple words.",
        "Why is it useful to know something about {x}?",
        "Give an everyday example of {x}.",
        "What do people often get wrong about {x}?",
        "Describe a simple way to show {x} to a class.",
        "Write a short talk between a teacher and a pupil about {x}.",
        "How did people learn about {x}?",
        "Write a few sentences that make a child curious about {x}.",
    ),
    "feeling": (
        "Describe what {x} feels like.",
        "What can cause {x}?",
        "Write a short story about {x}.",
        "How does {x} change the way people act?",
        "How would you explain {x} to a child?",
        "Write a short letter to a friend about {x}.",
        "What can people learn from {x}?",
        "Describe a moment of {x} in an ordinary day.",
        "How can a song or a painting show {x}?",
    ),
    "occasion": (
        "How should I prepare for {x}?",
        "Describe {x} from the view of a child.",
        "Write a short story about something funny that happens at {x}.",
        "What can go wrong at {x}?",
        "Give three tips for planning {x}.",
        "Write a short letter that invites a cousin to {x}.",
        "What makes {x} fun for everyone?",
        "Write a short speech for {x}.",
        "How can one save money on {x}?",
    ),
    "plant": (
        "Describe {x} in a few sentences.",
        "Where do {x} grow?",
        "How do you take care of {x}?",
        "Write a short poem about {x}.",
        "Why do people like to have {x} around?",
        "Tell me a few facts about {x}.",
        "Write a short story about a child who finds {x}.",
        "How do {x} change through the year?",
    ),
    "problem": (
        "How should I deal with {x}?",
        "Give three tips for handling {x}.",
        "Write a short story about {x}.",
        "Write a short message to a friend about {x}.",
        "How can one avoid {x}?",
        "Describe how {x} can change a day.",
        "What can someone learn from {x}?",
        "Write a funny talk between two people about {x}.",
        "Explain to a child what to do about {x}.",
    ),
}

_TOPICS: dict[str, dict[str, str]] = {
    "train": {
        "animal": """owls, dolphins, honey bees, elephants, penguins, wolves, turtles, horses, squirrels, spiders,
            ducks, bears, frogs, kangaroos, goats, butterflies, sharks, parrots, hedgehogs, cows, ants, lions,
            rabbits""",
        "food": """vegetable soup, pancakes, fried rice, apple pie, scrambled eggs, cheese sandwiches, tomato sauce,
            banana bread, roast chicken, lemonade, mashed potatoes, popcorn, fish stew, chocolate cake, green salad,
            peanut butter cookies, hot tea, pizza, corn tortillas, strawberry jam, oatmeal, beef burgers, yogurt""",
        "place": """a library, a train station, a farm, an airport, a street market, a zoo, a swimming pool, a
            bakery, a museum, a hospital, a mountain hut, a playground, a fishing harbor, a hotel, a bus stop, a
            barber shop, a post office, a castle, a camp site, a gas station, a bookshop, a cinema""",
        "job": """a nurse, a firefighter, a taxi driver, a carpenter, a teacher, a pilot, a gardener, a baker, a
            police officer, a journalist, a plumber, a waiter, a shepherd, a dentist, a sailor, a tailor, a judge, a
            cleaner, an electrician, a beekeeper, a street musician, a football coach""",
        "activity": """swimming, baking, running, chess, knitting, photography, hiking, singing in a choir,
            painting, fishing, yoga, bird watching, playing the guitar, dancing, cycling, camping, gardening on a
            balcony, writing poems, table tennis, learning a language, stargazing, juggling""",
        "object": """an umbrella, a bicycle, a kitchen knife, a pair of glasses, a wooden chair, a backpack, a
            mirror, a pillow, a coffee cup, a hammer, a wall clock, a candle, a broom, a suitcase, a woolen sweater,
            a notebook, a radio, a ladder, a teapot, a toothbrush, a pair of boots, a sewing machine""",
        "nature": """thunderstorms, rainbows, snow, volcanoes, the tides, earthquakes, fog, deserts, the moon,
            rivers, hurricanes, autumn leaves, sunsets, caves, glaciers, waterfalls, comets, floods, coral reefs,
            sand dunes, hot springs""",
        "science": """gravity, magnets, how plants make food, electric current, the water cycle, sound waves, the
            human heart, friction, vaccines, how shadows form, bacteria, how airplanes fly, levers, the solar
            system, boiling, why metal rusts, atoms, food chains, color mixing, the five senses, fossils""",
        "feeling": """joy, anger, loneliness, pride, fear, envy, homesickness, gratitude, boredom, surprise, grief,
            hope, shame, excitement, patience, curiosity, relief, trust, regret, love, confusion""",
        "occasion": """a birthday party, a wedding, a school play, a picnic, a family reunion, a farewell dinner, a
            book fair, a costume ball, a neighborhood barbecue, a graduation party, a housewarming, a charity run, a
            game night, a baby shower, a bonfire, a flea sale, a wine tasting, a talent show, a tea ceremony, a
            harvest festival, a beach volleyball tournament""",
        "plant": """roses, oak trees, sunflowers, mushrooms, tomato vines, cactuses, tulips, ferns, herbs, daisies,
            bamboo stalks, palm trees, pumpkins, mosses, lavender bushes, pine trees, water lilies, strawberry
            patches, ivy vines, orchids, cherry blossoms""",
        "problem": """a leaking tap, a lost wallet, a flat tire, a noisy neighbor, a bad cold, a messy room, a
            missed bus, a broken phone, a rude customer, a power cut, a burnt dinner, a sleepless night, a forgotten
            password, a bad grade, a scratched car, a long queue, an argument with a sister, a wrong delivery, a
            barking dog, a tight budget, a slow computer, a stained shirt""",
    },
    "anchor": {
        "animal": "cats, whales, camels, woodpeckers",
        "food": "garlic noodles, carrot muffins, creamy cocoa, bean chili",
        "place": "a theater, a seaside pier, a supermarket, a campus canteen",
        "job": "a veterinarian, a truck mechanic, a librarian, a fisherman",
        "activity": "rowing, pottery, karate, magic tricks",
        "object": "a flashlight, a frying pan, a doormat, a piano",
        "nature": "lightning, islands, the northern lights, icebergs",
        "science": "evaporation, the speed of light, blood circulation, erosion",
        "feeling": "disgust, ambition, nervousness, courage",
        "occasion": "a job interview, a carnival parade, a silent auction, a pajama sleepover",
        "plant": "willows, blueberry shrubs, dandelions, aloe succulents",
        "problem": "a squeaky door, a late guest, a sunburn, a spilled drink",
    },
    "layer": {
        "animal": "foxes, crocodiles",
        "food": "onion rings, mango smoothies",
        "place": "a stadium, a laundromat",
        "job": "a florist, a mail carrier",
        "activity": "skiing, origami",
        "object": "a compass, a blanket",
        "nature": "meteors, swamps",
        "science": "static electricity, digestion",
        "feeling": "disappointment, tenderness",
        "occasion": "a retirement lunch, a snowman contest",
        "plant": "maples, clovers",
        "problem": "a toothache, a jammed printer",
    },
    "scoring": {
        "animal": "giraffes, eagles, pigs, octopuses",
        "food": "spinach lasagna, cinnamon rolls, hummus, grilled shrimp",
        "place": "a lighthouse, an amusement park, a courthouse, a pharmacy",
        "job": "a wallpaper hanger, an astronaut, a cashier, a translator",
        "activity": "skating, meditation, climbing, collecting stamps",
        "object": "a violin, a watering can, a wristwatch, a pencil",
        "nature": "tornadoes, hail, oceans, eclipses",
        "science": "melting, genes, taste buds, telescopes",
        "feeling": "guilt, calm, enthusiasm, nostalgia",
        "occasion": "an engagement brunch, a science exhibition, a karaoke evening, an open-air concert",
        "plant": "vineyards, seaweeds, hazels, poppies",
        "problem": "a mosquito bite, a crowded elevator, a cancelled flight, a clogged sink",
    },
    "behaviour": {
        "animal": "snails, monkeys, crows, sheep, seals",
        "food": "pea risotto, dumplings, cornbread, fruit sorbet, stuffed peppers",
        "place": "a monastery, a toy store, an aquarium, a ski resort, a village square",
        "job": "a surgeon, a tram conductor, an architect, a babysitter, a detective",
        "activity": "surfing, crossword puzzles, archery, volunteering, model building",
        "object": "a lamp, a scarf, a kite, a calculator, a hammock",
        "nature": "avalanches, the wind, geysers, droughts, stars",
        "science": "rockets, batteries, immunity, density, lenses",
        "feeling": "embarrassment, awe, admiration, impatience, compassion",
        "occasion": "a bake-off, a spelling bee, a pub quiz, a lantern walk, a poetry reading",
        "plant": "dahlias, birches, cabbages, thistles, lemon groves",
        "problem": "a missing key, a headache, an unkept promise, a muddy carpet, a crying toddler",
    },
}


def topics(split: str) -> tuple[str, ...]:
    """The topics of a split, in the order they are written down.

    Raises:
        ValueError: unknown split.

    >>> topics("layer")[:3]
    ('foxes', 'crocodiles', 'onion rings')
    """
    return tuple(topic for _, topic in _grouped(split))


def prompts(split: str, count: int, *, seed: int = 0) -> tuple[str, ...]:
    """`count` different requests from a split, as many topics as possible first.

    Every topic is used once before any is used twice. A smaller count gives the beginning of what a larger one gives,
    and equal arguments give equal requests on any machine.

    Args:
        split: one of `SPLITS`; no topic, and so no request, is in two of them.
        count: how many, 0 or more.
        seed: which order of topics and forms.

    Raises:
        ValueError: unknown split, or a count the split cannot serve.

    >>> prompts("anchor", 2) == prompts("anchor", 40)[:2]
    True
    >>> prompts("layer", 10_000)
    Traceback (most recent call last):
    ValueError: split 'layer' holds 210 prompts (24 topics); got count=10000. Ask for 0 to 210.
    """
    grouped = _grouped(split)
    capacity = sum(len(FORMS[category]) for category, _ in grouped)
    if not 0 <= count <= capacity:
        raise ValueError(
            f"split {split!r} holds {capacity} prompts ({len(grouped)} topics); got count={count}. "
            f"Ask for 0 to {capacity}."
        )
    # A seed of type str is hashed with SHA-512 by `random`: the same stream in every process, unlike hash().
    draw = random.Random(f"{split}/{seed}")
    draw.shuffle(grouped)
    piles = []
    for category, topic in grouped:
        forms = list(FORMS[category])
        draw.shuffle(forms)
        piles.append([form.format(x=topic) for form in forms])
    rounds = range(max(map(len, piles)))
    return tuple([pile[turn] for turn in rounds for pile in piles if turn < len(pile)][:count])


def topic_of(prompt: str) -> str:
    """The topic of a request made by `prompts`.

    Raises:
        ValueError: no split makes this request.

    >>> topic_of("Where do foxes live?")
    'foxes'
    """
    for split in SPLITS:
        for category, topic in _grouped(split):
            if topic in prompt and prompt in {form.format(x=topic) for form in FORMS[category]}:
                return topic
    raise ValueError(f"no split makes the request {prompt!r}; pass a text that `prompts` returned.")


def _grouped(split: str) -> list[tuple[str, str]]:
    """(category, topic) pairs of a split."""
    if split not in _TOPICS:
        raise ValueError(f"split must be one of {SPLITS}; got {split!r}.")
    return [
        (category, " ".join(topic.split()))
        for category, listed in _TOPICS[split].items()
        for topic in listed.split(",")
    ]
