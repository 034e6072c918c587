/*
tales.c: a teller of little tales, and the exact amount of surprise that is in them

A language model trained on a book can be compared with other models, but never with the truth: nobody knows
how many nats a character of Shakespeare carries. Here it is known. The tales below are drawn from a grammar,
so the best loss that any model can reach on them is a number, which this program computes and prints:

    ./dev/data/tales --out tales.txt        2,000,000 characters of tales, and the entropy of their grammar
    ./dev/data/tales --score tales.txt      the loss on a text of the perfect model, which knows the grammar

What is in this file, in order:
    1  the grammar: decks of cards (names, beings, things) and rules (plots, sentences, phrases)
    2  the grammar made ready: strings become symbols
    3  three readers of the symbols: tell (draws a tale), measure (the exact entropy), match (the oracle)
    4  the command line

The notation. A rule is a list of alternatives parted by |, all equally likely, but n times so where one
begins with n*. Inside an alternative
    {walked}        is replaced by an alternative of the rule of that name, drawn anew every time
    {thing}         draws a card from the deck of that name; in one tale no card is drawn twice
    {hero=name}     draws a card and remembers it until the end of the tale
    {hero}          says the remembered card again, {hero.his} another column of it
    {Hero}          begins with a capital letter, as {Walked} and {Thing} do
So a tale is full of choices, but whoever is called Tilda at its start is Tilda, and she, until its end, and
the kettle that would not whistle is the kettle that whistles when all is well. This a model has to learn.
*/
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

// -----------------------------------------------------------------------------------------------------------
// 1  the grammar

typedef struct { const char *name, *columns, *rows; } DeckText;
typedef struct { const char *name, *alternatives; } RuleText;

#define SHE "/she/her/her|"
#define HE  "/he/him/his|"

static const DeckText deck_texts[] = {

{"name", "name he him his",
    "Ada" SHE "Agnes" SHE "Bess" SHE "Clara" SHE "Dora" SHE "Edith" SHE "Fern" SHE "Flora" SHE "Greta" SHE
    "Hattie" SHE "Hilda" SHE "Ivy" SHE "Josie" SHE "Kitty" SHE "Lottie" SHE "Mabel" SHE "Maud" SHE "Minna" SHE
    "Nell" SHE "Nora" SHE "Olive" SHE "Ottilie" SHE "Peg" SHE "Poppy" SHE "Ruby" SHE "Sal" SHE "Tansy" SHE
    "Tilda" SHE "Una" SHE "Vera" SHE "Wilma" SHE "Zelda" SHE
    "Albert" HE "Barnaby" HE "Basil" HE "Bertram" HE "Cuthbert" HE "Dudley" HE "Edgar" HE "Enoch" HE
    "Fergus" HE "Gus" HE "Hob" HE "Hugo" HE "Humphrey" HE "Ivo" HE "Jasper" HE "Jonas" HE "Kip" HE
    "Linus" HE "Mungo" HE "Ned" HE "Otto" HE "Percy" HE "Piers" HE "Quill" HE "Rollo" HE "Rufus" HE
    "Silas" HE "Toby" HE "Ulric" HE "Wilfred" HE "Yorick" HE "Zeb" HE},

// Who one meets, where such a one lives, what such a one likes to eat, and says.
{"being", "being home food sound",
    "ant/anthill/sugar/Tik|badger/burrow/turnips/Harrumph|baker/bakery/buns/Puff|bat/belfry/gnats/Eep|"
    "bear/cave/honey/Grr|beetle/matchbox/bark/Click|cat/basket/cream/Prrt|cobbler/cellar/noodles/Tap tap|"
    "cow/meadow/clover/Moo|crow/chimney/cherries/Caw|donkey/stable/thistles/Hee-haw|"
    "dragon/cavern/pepper/Whoosh|duck/ditch/peas/Quack|fiddler/inn/sausages/La la|fox/den/cheese/Ha|"
    "frog/well/flies/Croak|ghost/attic/toast/Boo|giant/castle/puddings/Fee fi fo|"
    "gnome/flowerpot/acorns/Pip pip|goat/shed/laundry/Meh|goose/pond/barley/Honk|hedgehog/hedge/plums/Snuff|"
    "hen/coop/corn/Cluck|heron/marsh/eels/Kraark|horse/barn/oats/Neigh|hound/kennel/bones/Woof|"
    "judge/court/pickles/Order|mayor/town hall/jam/Ahem|knight/tent/porridge/Clank|"
    "miller/mill/dumplings/Flup|mole/tunnel/carrots/Mmf|moth/lantern/wool/Fft|mouse/clock/crumbs/Eek|"
    "otter/river/trout/Splish|owl/hollow oak/figs/Hoo|pedlar/cart/onions/Hey ho|pig/sty/pumpkins/Oink|"
    "piper/barracks/parsnips/Toot|pirate/ship/limes/Arr|parrot/cage/rice/Squawk|"
    "rabbit/warren/radishes/Thump|robber/den/almonds/Psst|sailor/boat/biscuits/Ahoy|"
    "scarecrow/field/mustard/Rustle|sheep/fold/daisies/Baa|shepherd/hut/dates/Yoo-hoo|"
    "smith/forge/pies/Clang|snail/cabbage/lettuce/Slup|snowman/yard/ice cream/Brrr|"
    "spider/teapot/raisins/Tsst|squirrel/pine tree/nuts/Tsk|stork/steeple/herrings/Clack|"
    "swan/lake/grapes/Hiss|tailor/shop/gingerbread/Snip|toad/gutter/prunes/Gronk|troll/quarry/pancakes/Ugh|"
    "vicar/pulpit/walnuts/Hem|weasel/woodpile/custard/Sss|witch/hut/mushrooms/Hee hee|"
    "wizard/tower/lemons/Zim zam|wolf/wood/soup/Ow-woo|wren/bush/seeds/Tweet"},

// What a thing is good for, and what it does when at last it is.
{"thing", "thing do did",
    "accordion/wheeze/wheezed|anchor/sink/sank|anvil/clang/clanged|axe/chop/chopped|balloon/rise/rose|"
    "barrel/roll/rolled|bean/sprout/sprouted|bell/ring/rang|boat/float/floated|broom/sweep/swept|"
    "candle/burn/burned|carpet/fly/flew|cart/move/moved|clock/tick/ticked|coin/jingle/jingled|"
    "compass/point north/pointed north|cork/pop/popped|crown/gleam/gleamed|cushion/puff up/puffed up|"
    "doll/talk/talked|drum/rumble/rumbled|egg/hatch/hatched|fiddle/play/played|flag/wave/waved|"
    "flute/trill/trilled|gate/swing/swung|gong/boom/boomed|hammer/knock/knocked|harp/sing/sang|"
    "jug/pour/poured|kettle/whistle/whistled|kite/soar/soared|lamp/glow/glowed|loom/weave/wove|"
    "magnet/pull/pulled|mill/turn/turned|mirror/shine/shone|mousetrap/snap/snapped|needle/sew/sewed|"
    "nutcracker/crack/cracked|oven/bake/baked|pen/write/wrote|pie/steam/steamed|pudding/wobble/wobbled|"
    "pump/drip/dripped|puppet/dance/danced|rocket/go off/went off|rose/bloom/bloomed|saw/buzz/buzzed|"
    "scarf/keep warm/kept warm|sledge/slide/slid|spade/dig/dug|spoon/stir/stirred|teapot/bubble/bubbled|"
    "top/spin/spun|trumpet/toot/tooted|umbrella/open/opened|wand/work/worked|weathercock/crow/crowed|"
    "wheel/squeak/squeaked"},

// Things that come in numbers.
{"stuff", "stuff",
    "ants|apples|bats|beards|beds|bees|bells|books|boots|buns|camels|carrots|clouds|combs|crabs|dentists|"
    "doors|drums|ears|eels|eggs|feathers|fleas|geese|ghosts|gloves|hats|hiccups|holes|icicles|jokes|keys|"
    "kings|knees|ladders|lawyers|letters|mice|Mondays|moons|nails|noses|owls|peas|pigeons|pins|poets|"
    "puddles|riddles|secrets|shoes|sneezes|snores|socks|stars|storms|teeth|trousers|turnips|twins|weddings|"
    "whispers|wigs|worms"},

// Where the tale goes, and whether one is in it, on it or under it.
{"place", "place in",
    "bog/in|bridge/under|castle/in|cave/in|cliff/on|crossroads/at|desert/in|dune/on|forest/in|"
    "fountain/beside|garden/in|glacier/on|gorge/in|graveyard/in|harbour/in|heath/on|hill/on|island/on|"
    "labyrinth/in|lake/beside|lighthouse/in|marsh/in|meadow/in|mine/in|moor/on|mountain/on|orchard/in|"
    "pit/in|quarry/in|ruin/in|shipwreck/in|swamp/in|tower/in|valley/in|volcano/on|waterfall/behind|"
    "windmill/behind|wood/in"},
{"mood", "mood",
    "backward|bald|black|blue|bottomless|buttery|chilly|copper|crooked|crumbling|dreary|drowsy|endless|"
    "feathery|foggy|forgotten|frozen|giggling|glassy|gloomy|golden|grumbling|haunted|hollow|howling|jagged|"
    "lonely|lost|misty|moonlit|mossy|muddy|murky|nameless|purple|scarlet|shivering|silent|silver|singing|"
    "slippery|smoky|sneezing|spotted|sunken|thorny|tilting|topsy-turvy|twisted|weeping|whispering|wicked|"
    "windy|wobbling|yawning"},

// The towns: Mossford, Puddleby, Custardwick.
{"stem", "stem",
    "Acorn|Badger|Barley|Bramble|Button|Candle|Copper|Crumb|Custard|Drizzle|Fiddle|Goose|Hobble|Kettle|Lark|"
    "Marrow|Moss|Muddle|Nettle|Otter|Pebble|Pepper|Pickle|Plum|Puddle|Quiver|Rattle|Snail|Thimble|Thistle|"
    "Turnip|Whistle"},
{"tail", "tail",
    "bridge|bury|by|combe|cross|dale|field|ford|ham|holt|mere|moor|mouth|stead|stoke|thorpe|ton|well|wick|"
    "worth"},

// What one does to a thing that refuses to work.
{"mend", "mend",
    "blew on|boiled|brushed|buttered|dusted|flattered|greased|hugged|insulted|kicked|kissed|licked|nudged|"
    "oiled|painted|patted|peppered|pinched|poked|polished|praised|pushed|rubbed|sat on|scolded|scrubbed|"
    "shook|soaked|squeezed|tapped|threatened|thumped|tickled|turned|twisted|warmed|washed"},

// What one can be the best at.
{"skill", "skill past",
    "bake/baked|bow/bowed|cackle/cackled|climb/climbed|cook/cooked|count/counted|dance/danced|dig/dug|"
    "fish/fished|giggle/giggled|haggle/haggled|hop/hopped|juggle/juggled|jump/jumped|knit/knitted|"
    "paint/painted|race/raced|row/rowed|sew/sewed|sing/sang|skate/skated|sleep/slept|sneeze/sneezed|"
    "snore/snored|spit/spat|swim/swam|whisper/whispered|whistle/whistled|wrestle/wrestled|yodel/yodelled"},
};

static const RuleText rule_texts[] = {

// Six plots, in six or seven steps each.
{"tale", "4* {mending}|4* {theft}|3* {swapping}|3* {contest}|3* {lost}|3* {wish}"},

{"mending", "{opening} {habit}\n{broken} {tried} {advice}\n{journey} {guarded} {bargain}\n{mended} {ending}"},
{"theft", "{opening} {treasure}\n{stolen} {vow}\n{journey} {good deed} {showdown}\n{ending}"},
{"swapping", "{opening} {habit}\n{market} {first swap} {second swap} {third swap}\n{ending}"},
{"contest", "{rivals} {quarrel}\n{first try} {second try}\n{verdict} {peace}"},
{"lost",
    "{opening} {habit}\n{missing} {first question} {second question} {third question}\n{found} {ending}"},
{"wish",
    "{opening} {habit}\n{rescue} {wish for one}\n{ending}|"
    "{opening} {habit}\n{rescue} {wish for many}\n{ending}"},

// The hero, who from here on is {hero}, or {she}: the fox, or he.
{"opening",
    "3* {Once}, in {new town}, {there lived} {a temper} {kind=being} {called} {hero=name}.|"
    "2* {Once} {there lived} {a temper} {kind=being} {called} {hero=name} {near} {new town}.|"
    "2* In {new town} lived {hero=name}, {a temper} {kind=being} with {number} {stuff} and {a look} "
    "{thing}.|"
    "{hero=name} was {a temper} {kind=being} from {new town}, {a look} little town full of {temper} "
    "{stuff}.|"
    "Nobody in {new town} was as {temper} as {hero=name}, the {temper} {kind=being}.|"
    "When the {stuff} of {new town} were still {look}, {there lived} {a temper} {kind=being} {called} "
    "{hero=name}.|"
    "Have you heard of {hero=name}, the {temper} {kind=being} of {new town}?"},
{"new town", "{town=stem}{end=tail}"},
{"far away", "{stem}{tail}"},
{"she", "3* {hero}|4* {hero.he}|the {kind}"},
{"his", "{hero.his}"},
{"him", "{hero.him}"},
{"there lived", "dwelt|lived|reigned|sang|slept|there lived|there was"},
{"called", "called|named"},
{"near", "near|in|behind|above|a mile from|not far from|under"},
{"once",
    "2* once upon a time|2* long ago|one spring|one summer|one autumn|one winter|a hundred years ago|"
    "last week|in my grandmother's time|before the flood|after the war|on a Tuesday|when the moon was young|"
    "in a wet year"},

{"habit",
    "{She} {loved} {stuff}, {hated} {look} {stuff} and feared {look} {stuff}.|"
    "{She} could {skill} like {a temper} {being} and {skill} like {a look} {thing}.|"
    "{His} {nose} was {so} {look} that {number} {look} {stuff} {hid} in it.|"
    "{His} {nose} was as {look} as {a look} {thing}, {his} {nose} as {look} as {a temper} {being}.|"
    "Every {morning} {she} {counted} {list}.|"
    "{His} house was {a look} {thing}, {his} bed {a look} {landmark}, {his} lunch {a bowl} of {stuff}.|"
    "{She} had {number} {cousins}: {name} {skilled}, {name} {skilled}, and the rest {loved} {look} "
    "{stuff}.|"
    "{His} best friends were {name}, {a temper} {being}, and {name}, {a temper} {being}.|"
    "{She} {loved} {list}."},
{"loved", "loved|adored|collected|painted|dreamed of|talked to|wrote songs about|baked|sold|believed in"},
{"hated", "hated|disliked|despised|forgot|avoided|laughed at|sneezed at|never touched"},
{"nose", "nose|beard|voice|hat|belly|left foot|coat|heart|laugh|head|temper|shadow|walk|smile|garden|soup"},
{"so", "so|so very|so terribly|so pleasantly"},
{"hid", "hid|slept|danced|got lost|nested|met|lived|sang|could sit"},
{"counted", "counted|washed|sorted|scolded|combed|hid|kissed|fed|sang to|sat on"},
{"cousins", "cousins|sisters|brothers|aunts|uncles|neighbours|lodgers|daughters|sons"},

// First plot: a thing that will not do what it should.
{"broken",
    "2* But {his} {look} {item=thing} would not {item.do}.|"
    "{One day} {his} {look} {item=thing} would not {item.do} {any more}.|"
    "{One day} {she} {got} {a look} {item=thing}, but it would not {item.do}."},
{"any more", "any more|for anyone|at all|without crying|except for money|on weekdays"},
{"got", "found|bought|won|was given|inherited|caught|stole|dug up"},
{"tried",
    "{She} {mend} it, {mend} it and {mend} it, but it {sulked}.|"
    "{She} {mend} it with {list}; it {sulked}.|"
    "{A temper} {being} {mend} it {number} times, {a temper} {being} {mend} it, and it {sulked}.|"
    "{She} {mend} it and {mend} it, {a temper} {being} {mend} it. It {sulked}."},
{"sulked",
    "sulked|sneezed|dripped|blushed|rattled|hiccuped|groaned|yawned|wept|turned {look}|smelled of {stuff}|"
    "hummed|fell over|giggled|burped|snored|wriggled|went soft"},
{"advice",
    "'{Oh},' {said} {a temper} {friend=being}, 'it {lacks} {a look} {cure=thing} from the {new spot}.'|"
    "'{Friend=being.sound}! It {lacks} {a look} {cure=thing},' {said} {his} {friend}. 'Go to the {new "
    "spot}!'|"
    "{A temper} {friend=being} {winked}: '{Oh}! The {new spot} has {a look} {cure=thing}.'"},
{"winked", "winked|shrugged|yawned|bowed|smiled|coughed|nodded"},
{"lacks", "lacks|needs|wants|misses|is in love with|is afraid of|dreams of"},
{"new spot", "{dark=mood} {spot=place}"},
{"there", "{spot.in} the {dark} {spot}"},
{"guarded",
    "{There} sat {a temper} {foe=being}, {doing}.|"
    "{There} {a temper} {foe=being} was {doing}: '{Foe.sound}!'|"
    "{A temper} {foe=being} had it, {doing}, among {number} {look} {stuff}."},
{"bargain",
    "'{Foe.sound}! {A bowl} of {look} {foe.food}!' '{Done},' {said} {hero}.|"
    "'{Oh}! I want {list},' {said} the {foe}. '{Done}!'|"
    "{Hero} gave the {foe} {list}, and took it.|"
    "{Hero} {skilled} like {a temper} {being}, {skilled} and {skilled}, until the {foe} {laughed}."},
{"pocket", "bag|beard|bed|boot|coat|hat|pocket|sleeve|sock|teacup|wig"},
{"done", "done|gladly|take it|at last|good|say no more|sold"},
{"skilled", "{skill.past}"},
{"laughed", "laughed|wept|sneezed|clapped|yawned|giggled|danced|shook"},
{"mended",
    "{Hero} {carried} it home by {far away}: the {item} {item.did} until {marvel} and {marvel}.|"
    "{Hero} {put} it {under} the {item}. It {item.did} until {marvel} and {marvel}."},
{"put", "put|laid|glued|threw|balanced|hid|hung"},
{"under", "under|behind|in|beside|on|near"},
{"carried", "carried|rolled|dragged|brought|kicked|sang|pushed"},
{"so loudly", "so {loudly}"},
{"loudly", "loudly|sweetly|softly|well|long|fast|wildly|nicely|grandly|badly|oddly|bravely|sadly|warmly"},
{"marvel",
    "{number} {look} {stuff} {fell} off the {landmark}|"
    "{a temper} {being} {fell} {past} {a look} {landmark}|"
    "the {temper} {stuff} of {town}{end} {danced}|"
    "{his} {nose} filled with {temper} {stuff}|"
    "even {a temper} {being} {danced}"},
{"fell", "fell|jumped|flew|rolled|slid|hopped|marched|walked"},
{"danced", "danced|cheered|wept|sang|bowed|blushed|woke up|came to supper|went home|got married"},

// Second plot: a treasure, and somebody who takes it away.
{"treasure",
    "{His} {pride} was {a look} {item=thing}, which {item.did} {when asked}.|"
    "{She} {loved} {his} {look} {item=thing}, and it {item.did} {when asked}.|"
    "{She} had {number} {temper} {cousins}, {number} {stuff} and {a look} {item=thing} that {item.did} "
    "{when asked}."},
{"pride", "pride|joy|secret|comfort|treasure|only friend|true love"},
{"when asked",
    "every {morning}|"
    "at {teatime}|"
    "on {some days}|"
    "{a bowl} at a time|"
    "for {a temper} {being}|"
    "like {a look} {thing}|"
    "whenever {a temper} {being} {sneezed}"},
{"morning", "morning|evening|night|noon|Monday|Friday|Sunday|spring|winter"},
{"teatime", "teatime|breakfast|supper|midnight|weddings|funerals|parties|sunrise|low tide"},
{"some days", "Mondays|Tuesdays|Wednesdays|Thursdays|Fridays|Saturdays|Sundays|weekdays"},
{"sneezed", "sneezed|yawned|came by|wept|looked|sang|fainted|blinked|was ill"},
{"stolen",
    "{One day} {a temper} {foe=being} {grabbed} the {item} and {fled} to the {new spot}.|"
    "But {a temper} {foe=being} from the {new spot} {grabbed} it {one day} and left {a look} {thing} "
    "{instead}.|"
    "{One day} {a temper} {foe=being} {skilled} {past} the {landmark}, {grabbed} the {item} and {fled} to "
    "the {new spot}."},
{"grabbed", "borrowed|grabbed|packed|pocketed|stole|swallowed|swiped|took|won"},
{"fled", "fled|ran|sailed|rode|crept|flew|moved|swam"},
{"instead", "instead|behind|on the stairs|in its place|in the bath|as rent"},
{"vow",
    "'{Oh},' {said} {hero}, '{promise}!' and {packed} {list}.|"
    "{Hero} {wept} {number} {look} tears and {packed} {list}.|"
    "'{Kind.sound}!' {said} {hero}, {packed} {list}, and ran."},
{"promise", "I will have it back|that {foe} will be sorry|I need my {item}|after lunch I go"},
{"wept", "wept|cried|shed|saved|sneezed"},
{"packed", "packed|ate|grabbed|dropped|kissed|wrapped"},
{"good deed",
    "{By the way} {she} {freed} {a temper} {friend=being} from {list}. '{Friend.sound}! Take this "
    "{tool=thing}: {it will help}.'|"
    "{By the way} {a temper} {friend=being} gave {him} {a look} {tool=thing} for {a bowl} of {look} "
    "{friend.food}: '{It will help}.'"},
{"by the way",
    "on the way|{past} {a look} {landmark}|{past} the {landmark}|at {teatime}|after {number} miles"},
{"it will help",
    "every {foe} fears it|it bites|use it {loudly}|it can {tool.do}|no {foe} can bear it|do not eat it|"
    "it is {look}"},
{"freed", "cut|freed|pulled|saved|shook|untied"},
{"showdown",
    "{There} {she} {raised} the {tool}. The {foe} {fled} by {far away}, and left the {item} and {item of}.|"
    "'{Foe.sound}!' The {tool} {tool.did}, and out of {a look} {pocket} fell the {item} and {list}.|"
    "The {foe} was {doing}. The {tool} {tool.did}: the {foe} {skilled}, {skilled} and dropped the {item}."},
{"raised", "raised|swung|showed|dropped|kissed|threw|blew on"},

// Third plot: from a bell to a spoon, and with luck back to the bell.
{"market",
    "{One day} {she} took {his} {look} {item=thing} and {list} to market.|"
    "{She} had {a look} {item=thing} that {item.did} {when asked}, and {one day} {she} went to sell it.|"
    "{She} was tired of {his} {look} {item=thing}, for it {item.did} {when asked}."},
{"first swap",
    "{By the way} {a temper} {friend=being}, {doing}, gave {him} {a look} {cure=thing} for it.|"
    "'{Friend=being.sound}!' {said} {a temper} {friend}, {doing}. '{A look} {cure=thing} for that {item}?' "
    "'{Done}!'"},
{"wanted", "wanted|begged for|fell in love with|sat on|swallowed|admired|needed"},
{"second swap",
    "{By the way} {a temper} {other=being} {wanted} the {cure}, and gave {him} {a look} {tool=thing}.|"
    "The {cure} {cure.did} until {marvel}, so {she} gave it to {a temper} {other=being} for {a look} "
    "{tool=thing}.|"
    "'{Other=being.sound},' {said} {a temper} {other}, {doing}, 'I give {a look} {tool=thing} for it.'"},
{"third swap",
    "3* {By the way} {a temper} {foe=being} gave {him} {item of}, {item of} and {his} own {item} for the "
    "{tool}!|"
    "2* The {tool} {sulked}, and {a temper} {foe=being} took it for {a bowl} of {look} {foe.food}.|"
    "At home {she} put the {tool} {under} {a look} {landmark}, where it {tool.did} {when asked}."},

// Fourth plot: who is best?
{"rivals",
    "In {new town} lived {a temper} {kind=being} {called} {hero=name} and {a temper} {other=being} "
    "{called} {rival=name}.|"
    "{Once} {hero=name}, {a temper} {kind=being}, and {rival=name}, {a temper} {other=being}, shared {a "
    "look} house in {new town}.|"
    "{hero=name} the {kind=being} and {rival=name} the {other=being} were {temper} {cousins} in {new town}."},
{"quarrel",
    "'Who can {art=skill} better?' they asked {a temper} {judge=being}, who was {doing}. '{Judge.sound}! I "
    "want {list}.'|"
    "'I {art=skill} like {a temper} {being},' {said} {hero}. 'You {art} like {a look} {thing},' {said} "
    "{rival}. So they asked {a temper} {judge=being}."},
{"first try",
    "{Rival} {art.past} {past} {a look} {landmark}, {so loudly} that {marvel}.|"
    "First {rival} {art.past} like {a look} {thing}, until {marvel}."},
{"second try",
    "Then {hero} {art.past} like {a temper} {being}, and {marvel}.|"
    "{Hero} {art.past} {past} {number} {look} {stuff}, until {marvel}.|"
    "But {hero} sat on {a look} {thing}, {doing}."},
{"verdict",
    "'{Judge.sound},' {said} the {judge}. 'You {art} like {a look} {thing} and {a temper} {being}.'|"
    "'{Judge.sound}! You both lose {list}.'|"
    "'{Oh}! {rival} wins {list},' {said} the {judge}.|"
    "'{Oh}! {hero} wins {list},' {said} the {judge}."},
{"peace",
    "{Hero} and {rival} {laughed} and shared {a bowl} of {look} {kind.food}.|"
    "So {hero} married {rival}, and {a temper} {being} gave them {list}.|"
    "{Rival} {wept} {number} {look} tears, and {hero} gave {rival.him} {list}.|"
    "2* {ending}"},

// Fifth plot: something lost.
{"missing",
    "{One day} {his} {look} {item=thing} was gone.|"
    "{One day} {she} lost {a look} {item=thing} {past} {a look} {landmark}, {doing}."},
{"first question",
    "'Where is it?' {she} asked {a temper} {friend=being}. '{Friend.sound}! I have only {list}.'|"
    "'{Oh},' {said} {a temper} {friend=being}, {doing}, 'I see no {item}, only {list}.'|"
    "{She} asked {name} in {far away}, {name} in {far away}, and {a temper} {friend=being}, who had {list}."},
{"second question",
    "{A temper} {other=being}, {doing}, had {a look} {thing}, but no {item}.|"
    "{A temper} {other=being} {said}: '{Other.sound}! Is it {under} {a look} {landmark}?' It was not.|"
    "{She} looked {under} {a look} {thing}, {under} {number} {look} {stuff} and {under} {a temper} "
    "{other=being}. '{Other.sound}!'"},
{"third question",
    "'{Oh}! I ate it with {list},' {said} {a temper} {foe=being}. That was a lie.|"
    "'{Oh},' {said} {a temper} {foe=being}, 'mine {item.did} too, {when asked}.'|"
    "Then something {item.did} {so loudly} that {marvel}."},
{"found",
    "It was {under} {his} own {look} {pocket}, with {list}!|"
    "At last {she} {mend} {his} {look} {pocket}: out fell the {item}, and {list}.|"
    "The {item} was in the {friend.home}, {under} {list}! '{Friend.sound},' {said} the {friend}."},

// Sixth plot: be careful what you wish for.
{"rescue",
    "{One day} {she} {freed} {a temper} {friend=being} from {list}. '{Friend.sound}! Make a wish.'|"
    "{One day} {she} gave {a bowl} of {look} {friend=being.food} to {a temper} {friend}. '{Friend.sound}! "
    "Make a wish.'"},
{"wish for one",
    "'{A look} {item=thing} that can {item.do}!' {said} {hero}.\nIt {item.did} until {marvel} and "
    "{marvel}. {Hero} {mend} it, {mend} it, and gave it away for {list}.|"
    "'Let me {art=skill} like {a temper} {being},' {said} {hero}.\n{She} {art.past} until {marvel}, "
    "{marvel}, and {marvel}."},
{"wish for many",
    "'May all {before=stuff} be {after=stuff},' {said} {hero}.\n{Alas}, {temper} {after} {danced} {under} "
    "every {landmark}, and {marvel}. {She} missed the {before}.|"
    "'I wish for {list},' {said} {hero}.\n{Alas}, {a temper} {being} {grabbed} them, and {marvel}."},
{"alas", "alas|so it was|oh dear|soon|what a day"},

// Phrases that all plots share.
{"journey",
    "So {she} {walked} {past} {a look} {landmark}, {past} {a look} {landmark} and {past} {number} {look} "
    "{stuff}.|"
    "{She} {walked} for {number} days with {a temper} {being}, {doing}.|"
    "{It rained}, and {she} {walked} {past} {a look} {landmark} like {a temper} {being}.|"
    "{Hero} {walked} to {far away}, {walked} to {far away} and {walked} to {far away}, {doing}.|"
    "{She} {walked} by way of {far away}, {far away} and {far away}, {past} {number} {look} {stuff}."},
{"walked",
    "walked|ran|trotted|hobbled|tiptoed|marched|skipped|hurried|waddled|wandered|strolled|stumbled|hopped|"
    "crept|bounced|galloped|shuffled|danced|rolled|limped"},
{"past", "past|through|over|around|under|along|across|behind|beyond|into|up|down"},
{"it rained",
    "it rained|it snowed|the wind blew|the sun shone|fog came down|the moon rose|it hailed|"
    "{stuff} fell from the sky"},
{"doing",
    "counting {look} {stuff}|"
    "{washing} {a look} {thing}|"
    "eating {look} {stuff}|"
    "{washing} {number} {look} {stuff}|"
    "{washing} {stuff}|"
    "talking to {a look} {thing}|"
    "humming to {a temper} {being}|"
    "dreaming of {stuff}"},
{"list",
    "2* {item of} and {item of}|"
    "2* {item of}, {item of} and {item of}|"
    "{item of}, {item of}, {item of} and {item of}"},
{"item of", "2* {a look} {thing}|2* {number} {look} {stuff}|{a bowl} of {stuff}|{look} {stuff}"},
{"washing",
    "washing|oiling|scolding|knitting|chewing|painting|kissing|tickling|drying|peeling|hiding|ironing"},
{"ending",
    "From then on {hero} {loved} {look} {stuff} and {hated} {look} {stuff}.|"
    "Moral: never {trust} {a temper} {being} with {a look} {thing}.|"
    "Moral: {a look} {thing} is better than {list}.|"
    "And if the {stuff} have not {danced}, {she} sits {under} {a look} {landmark} still, {doing}.|"
    "And that is why {stuff} are {look}, and why {stuff} are {temper}.|"
    "{She} ate {a bowl} of {look} {kind.food} and {skilled} until {morning}.|"
    "That {morning} {she} slept like {a look} {thing} and dreamed of {list}.|"
    "Then {she} married {name}, {a temper} {being}, and they had {number} children: {name}, {name}, {name} "
    "and so on.|"
    "To this day the {stuff} of {town}{end} {skill} like {a look} {thing}."},
{"trust", "trust|leave|feed|marry|follow|wash|bother|tickle"},
{"a bowl",
    "a bowl|a pot|a sack|a bucket|a plate|a hatful|a bag|a spoonful|a jar|a barrel|a basket|a mouthful"},
{"oh",
    "oh dear|good grief|well, well|bother|goodness|my word|heavens|fiddlesticks|dear me|oh, crumbs|mercy|hm|"
    "alas|by my beard|how odd|I see"},
{"said",
    "said|cried|sighed|whispered|muttered|shouted|sang|grumbled|laughed|yawned|mumbled|hissed|declared|"
    "croaked|sneezed|lied"},
{"number", "two|three|four|five|six|seven|nine|ten|twelve|forty|ninety|a hundred"},
{"landmark",
    "stile|pump|haystack|church|barn|signpost|beehive|wall|fence|lamp post|milestone|tollgate|chapel|inn|"
    "stump|boulder|bandstand|smithy|vineyard|dovecote|maypole|puddle|brook|bakery|bathtub|stage|ditch|hedge|"
    "pond"},
{"one day", "at dawn|at dusk|next day|one day|one morning|one night"},

{"a temper", "9* a {temper}|an {idle}"},
{"temper",
    "bald|bashful|bearded|bold|bossy|brave|calm|careful|cheerful|clever|clumsy|cross|cunning|curious|damp|"
    "dizzy|dreamy|fair|foolish|fussy|gentle|glad|gloomy|greedy|grim|grumpy|hairy|happy|hopeful|humble|"
    "hungry|jealous|jolly|keen|kind|lazy|lonely|lost|loud|lucky|meek|merry|mild|moody|neat|nervous|noble|"
    "noisy|nosy|pale|patient|plump|polite|poor|prim|proud|quick|quiet|restless|rude|sad|shy|silly|sleepy|"
    "slow|sly|small|smug|solemn|sour|stern|sticky|strict|stubborn|tall|tame|thin|thirsty|tidy|timid|tiny|"
    "tired|vain|warm|weak|wet|wild|wise|worried|young"},
{"idle", "angry|anxious|early|elderly|envious|honest|idle|old|ugly|untidy"},
{"a look", "9* a {look}|an {old}"},
{"look",
    "bent|big|bitter|black|blue|blunt|borrowed|brass|broken|brown|buttered|cheap|clean|cold|copper|cracked|"
    "crooked|damp|dark|deep|dented|dry|dull|dusty|fake|famous|fine|flat|fluffy|folded|fresh|frozen|glass|"
    "golden|green|grey|hairy|haunted|heavy|hollow|hot|huge|knitted|leaky|long|loose|lost|loud|lucky|magic|"
    "mossy|muddy|musical|new|pale|paper|pickled|pink|plain|polished|purple|raw|red|rotten|rough|round|royal|"
    "rusty|salty|secret|sharp|shiny|short|silent|silver|slow|smelly|soft|sour|spare|square|squeaky|sticky|"
    "stiff|stolen|striped|sweet|tame|thick|tin|tiny|velvet|warm|wet|white|wild|wobbly|wooden|yellow"},
{"old", "amber|empty|enormous|invisible|iron|itchy|ivory|odd|oily|old|orange|upside-down"},
};

// -----------------------------------------------------------------------------------------------------------
// 2  the grammar made ready

#define COUNT(array) ((int)(sizeof(array) / sizeof((array)[0])))

enum { DECKS = COUNT(deck_texts), RULES = COUNT(rule_texts), MAX_ROWS = 64, MAX_COLUMNS = 4,
       MAX_VARIABLES = 32, MAX_ALTERNATIVES = 2048, MAX_SYMBOLS = 8192, MAX_DRAWN = 32, MAX_TALE = 16384 };

typedef struct { const char *text; int length; } Span;  // a piece of the strings above

typedef struct {
    int rows, columns;
    Span column_name[MAX_COLUMNS];
    Span cell[MAX_ROWS][MAX_COLUMNS];
} Deck;

typedef struct {
    enum { TEXT, RULE, DRAW, RECALL } kind;
    int capital;    // does what it stands for begin with a capital letter?
    Span text;      // TEXT: itself; the others: what stands between the braces
    int rule;       // RULE: which
    int deck;       // DRAW, RECALL: of which deck
    int variable;   // DRAW: where the card is remembered, or -1; RECALL: the card
    int column;     // DRAW, RECALL: what is said of the card
} Symbol;

typedef struct { const Symbol *begin, *end; int weight; double log_p; } Alternative;
typedef struct { const Alternative *begin, *end; int weight; } Rule;
typedef struct { Span name; int deck; } Variable;

static Deck decks[DECKS];
static Rule rules[RULES];
static Variable variables[MAX_VARIABLES];
static Alternative alternatives[MAX_ALTERNATIVES];
static Symbol symbols[MAX_SYMBOLS];
static int variable_count, alternative_count, symbol_count;

static _Noreturn void grammar_mistake(const char *what, Span where) {
    fprintf(stderr, "error: %s: '%.*s': correct the grammar in dev/data/tales.c\n", what, where.length,
            where.text);
    exit(1);
}

static Span span(const char *text) { return (Span){text, (int)strlen(text)}; }

// The part of *rest before the next separator; *rest moves behind that.
static Span cut(Span *rest, char separator) {
    const char *stop = rest->length ? memchr(rest->text, separator, rest->length) : NULL;
    Span head = {rest->text, stop ? (int)(stop - rest->text) : rest->length};
    int used = head.length + (stop != NULL);
    *rest = (Span){rest->text + used, rest->length - used};
    return head;
}

// The case of the first letter is set aside, since {Walked} means {walked}.
static int same_name(Span a, Span b) {
    return a.length == b.length && a.length > 0 && (a.text[0] | 32) == (b.text[0] | 32)
        && !memcmp(a.text + 1, b.text + 1, a.length - 1);
}

static int find_deck(Span name) {
    for (int d = 0; d < DECKS; d++) if (same_name(name, span(deck_texts[d].name))) return d;
    return -1;
}

static int find_rule(Span name) {
    for (int r = 0; r < RULES; r++) if (same_name(name, span(rule_texts[r].name))) return r;
    return -1;
}

static int find_variable(Span name) {
    for (int v = 0; v < variable_count; v++) if (same_name(name, variables[v].name)) return v;
    return -1;
}

static int find_column(int deck, Span name) {
    if (name.length == 0) return 0;
    for (int c = 0; c < decks[deck].columns; c++) if (same_name(name, decks[deck].column_name[c])) return c;
    grammar_mistake("the deck has no such column", name);
}

static void prepare_deck(Deck *deck, const DeckText *source) {
    for (Span names = span(source->columns); names.length > 0; ) {
        if (deck->columns == MAX_COLUMNS) grammar_mistake("too many columns", names);
        deck->column_name[deck->columns++] = cut(&names, ' ');
    }
    for (Span rows = span(source->rows); rows.length > 0; deck->rows++) {
        Span row = cut(&rows, '|');
        if (deck->rows == MAX_ROWS) grammar_mistake("one card too many", row);
        for (int c = 0; c < deck->columns; c++) deck->cell[deck->rows][c] = cut(&row, '/');
        if (row.length > 0 || deck->cell[deck->rows][deck->columns - 1].length == 0)
            grammar_mistake("a card with a wrong number of columns in the deck", span(source->name));
    }
}

// {hero=name}: a variable has a name and a deck. All are found before anything else, since a rule that says a
// card may stand above the one that draws it.
static void find_variables(Span rule) {
    cut(&rule, '{');
    while (rule.length > 0) {
        Span deck = cut(&rule, '}'), name = cut(&deck, '=');
        deck = cut(&deck, '.');
        cut(&rule, '{');
        if (deck.length == 0) continue;
        int d = find_deck(deck), v = find_variable(name);
        if (d < 0) grammar_mistake("no such deck", deck);
        if (find_deck(name) >= 0 || find_rule(name) >= 0) grammar_mistake("two things of one name", name);
        if (v >= 0 && variables[v].deck != d) grammar_mistake("a variable of two decks", name);
        if (v >= 0) continue;
        if (variable_count == MAX_VARIABLES) grammar_mistake("one variable too many", name);
        variables[variable_count++] = (Variable){name, d};
    }
}

// What stands between braces: a rule, a card to draw, or a card to say again.
static Symbol prepare_reference(Span inside) {
    Symbol symbol = {.text = inside, .capital = inside.text[0] >= 'A' && inside.text[0] <= 'Z'};
    Span column = inside, deck = cut(&column, '.'), name = cut(&deck, '=');
    if ((symbol.rule = find_rule(name)) >= 0) {
        symbol.kind = RULE;
        return symbol;
    }
    symbol.variable = find_variable(name);
    symbol.kind = symbol.variable < 0 || deck.length > 0 ? DRAW : RECALL;
    symbol.deck = symbol.variable < 0 ? find_deck(name) : variables[symbol.variable].deck;
    if (symbol.deck < 0) grammar_mistake("no such rule, deck or variable", inside);
    symbol.column = find_column(symbol.deck, column);
    return symbol;
}

static void prepare_rule(Rule *rule, Span source) {
    rule->begin = alternatives + alternative_count;
    while (source.length > 0) {
        Span text = cut(&source, '|');
        if (alternative_count == MAX_ALTERNATIVES) grammar_mistake("one alternative too many", text);
        Alternative *alternative = &alternatives[alternative_count++];
        alternative->weight = 1;
        if (text.length > 3 && text.text[1] == '*' && text.text[2] == ' ') {
            alternative->weight = text.text[0] - '0';
            text = (Span){text.text + 3, text.length - 3};
        }
        rule->weight += alternative->weight;
        alternative->begin = symbols + symbol_count;
        while (text.length > 0) {
            if (symbol_count + 2 > MAX_SYMBOLS) grammar_mistake("one symbol too many", text);
            Span plain = cut(&text, '{');
            if (plain.length > 0) symbols[symbol_count++] = (Symbol){.kind = TEXT, .text = plain};
            if (text.length > 0) symbols[symbol_count++] = prepare_reference(cut(&text, '}'));
        }
        alternative->end = symbols + symbol_count;
    }
    rule->end = alternatives + alternative_count;
    for (Alternative *a = alternatives + (rule->begin - alternatives); a < rule->end; a++)
        a->log_p = log((double)a->weight / rule->weight);
}

static void prepare_grammar(void) {
    for (int d = 0; d < DECKS; d++) prepare_deck(&decks[d], &deck_texts[d]);
    for (int r = 0; r < RULES; r++) find_variables(span(rule_texts[r].alternatives));
    for (int r = 0; r < RULES; r++) prepare_rule(&rules[r], span(rule_texts[r].alternatives));
}

// -----------------------------------------------------------------------------------------------------------
// 3  three readers of the grammar. The first rule is the tale.

// What has been dealt in one tale.
typedef struct {
    uint64_t drawn[DECKS];      // one bit a card
    int card[MAX_VARIABLES];
} Table;

static void clear_table(Table *table) {
    memset(table->drawn, 0, sizeof table->drawn);
    for (int v = 0; v < MAX_VARIABLES; v++) table->card[v] = -1;
}

static Span recalled(const Table *table, const Symbol *symbol) {
    int card = table->card[symbol->variable];
    if (card < 0) grammar_mistake("a card is said again before it is drawn", symbol->text);
    return decks[symbol->deck].cell[card][symbol->column];
}

static char upper(char c) { return c >= 'a' && c <= 'z' ? c - 32 : c; }

// --- The first reader draws a tale.

// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014).
static uint64_t random_next(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

// 0 ... n-1, each exactly as likely as the others: numbers of the incomplete last round are thrown away.
static int random_below(uint64_t *state, int n) {
    uint64_t number, limit = UINT64_MAX - UINT64_MAX % n;
    do number = random_next(state); while (number >= limit);
    return (int)(number % n);
}

typedef struct { Table table; char text[MAX_TALE]; int length, capital; } Tale;

static void say(Tale *tale, Span text) {
    if (tale->length + text.length > MAX_TALE) grammar_mistake("a tale is too long at", text);
    memcpy(tale->text + tale->length, text.text, text.length);
    if (tale->capital && text.length > 0) {
        tale->text[tale->length] = upper(text.text[0]);
        tale->capital = 0;
    }
    tale->length += text.length;
}

static void tell(Tale *tale, const Rule *rule, uint64_t *random) {
    int ticket = random_below(random, rule->weight);
    const Alternative *a = rule->begin;
    while ((ticket -= a->weight) >= 0) a++;
    for (const Symbol *s = a->begin; s < a->end; s++) {
        tale->capital |= s->capital;
        if (s->kind == TEXT) say(tale, s->text);
        if (s->kind == RULE) tell(tale, &rules[s->rule], random);
        if (s->kind == RECALL) say(tale, recalled(&tale->table, s));
        if (s->kind == DRAW) {
            const Deck *deck = &decks[s->deck];
            uint64_t *drawn = &tale->table.drawn[s->deck];
            int left = deck->rows - __builtin_popcountll(*drawn);
            if (left == 0) grammar_mistake("no card is left for", s->text);
            int card = 0;
            for (int skip = random_below(random, left); skip > 0 || *drawn >> card & 1; card++)
                skip -= !(*drawn >> card & 1);
            *drawn |= (uint64_t)1 << card;
            if (s->variable >= 0) tale->table.card[s->variable] = card;
            say(tale, deck->cell[card][s->column]);
        }
    }
}

static void tell_tale(Tale *tale, uint64_t *random) {
    clear_table(&tale->table);
    tale->length = tale->capital = 0;
    tell(tale, &rules[0], random);
    say(tale, span("\n\n"));
}

// --- The second reader measures the entropy.
//
// A tale has one derivation only (the third reader looks for more), so its surprise is the sum of the
// surprises of the choices made on the way, and the entropy of a tale is the expectation of that sum.
//   Rules: whatever happened before, an alternative is drawn with the same p_i; so a rule has entropy
//     H = sum_i p_i (-log p_i + sum of H over the symbols of alternative i), and an expected length alike.
//   Cards: the k-th card from a deck of n is one of n-k+1, all equally likely: log(n-k+1) nats, wherever in
//     the tale it is drawn. So only the number K of cards that a tale takes from a deck matters: together
//     they cost log n + ... + log(n-K+1). The distribution of K is a convolution over the symbols of an
//     alternative, and a mixture over the alternatives.
//   Lengths: no rule looks at a card before it decides, so that all cards of a deck are alike to the rest of
//     the tale, and one that is said, wherever that is, has the mean length of its column.
// A text is one tale after another, drawn independently: from tale to tale -log p grows by E[entropy of a
// tale] and the text by E[length of a tale] (the blank line included). By the law of large numbers nats per
// character, the ratio of both sums, tends to the ratio of the expectations (the renewal-reward theorem).

typedef struct {
    enum { UNKNOWN, IN_WORK, KNOWN } state;
    double entropy;                     // of the choices among alternatives, nats
    double length;                      // characters
    double cards[DECKS][MAX_DRAWN];     // probability that so many cards are drawn
} Measure;

static Measure measures[RULES];

static void convolve(double *a, const double *b) {
    double sum[MAX_DRAWN] = {0};
    for (int i = 0; i < MAX_DRAWN; i++) {
        for (int j = 0; a[i] > 0 && j < MAX_DRAWN; j++) {
            if (b[j] == 0) continue;
            if (i + j >= MAX_DRAWN) grammar_mistake("so many cards in a tale", span("MAX_DRAWN"));
            sum[i + j] += a[i] * b[j];
        }
    }
    memcpy(a, sum, sizeof sum);
}

static double mean_length(const Symbol *symbol) {
    const Deck *deck = &decks[symbol->deck];
    double sum = 0;
    for (int row = 0; row < deck->rows; row++) sum += deck->cell[row][symbol->column].length;
    return sum / deck->rows;
}

static const Measure *measure(int r) {
    static const double one_card[MAX_DRAWN] = {0, 1};
    Measure *m = &measures[r];
    if (m->state == KNOWN) return m;
    if (m->state == IN_WORK) grammar_mistake("a rule that leads to itself", span(rule_texts[r].name));
    m->state = IN_WORK;
    for (const Alternative *a = rules[r].begin; a < rules[r].end; a++) {
        double p = (double)a->weight / rules[r].weight, entropy = -a->log_p, length = 0;
        double cards[DECKS][MAX_DRAWN] = {{0}};
        for (int d = 0; d < DECKS; d++) cards[d][0] = 1;
        for (const Symbol *s = a->begin; s < a->end; s++) {
            if (s->kind == TEXT) length += s->text.length;
            if (s->kind == DRAW) convolve(cards[s->deck], one_card);
            if (s->kind == DRAW || s->kind == RECALL) length += mean_length(s);
            if (s->kind == RULE) {
                const Measure *inner = measure(s->rule);
                entropy += inner->entropy;
                length += inner->length;
                for (int d = 0; d < DECKS; d++) convolve(cards[d], inner->cards[d]);
            }
        }
        m->entropy += p * entropy;
        m->length += p * length;
        for (int d = 0; d < DECKS; d++)
            for (int k = 0; k < MAX_DRAWN; k++) m->cards[d][k] += p * cards[d][k];
    }
    m->state = KNOWN;
    return m;
}

// Nats per character.
static double grammar_entropy(void) {
    const Measure *tale = measure(0);
    double entropy = tale->entropy;
    for (int d = 0; d < DECKS; d++) {
        double drawn = 0;       // log n + ... + log(n-K+1)
        for (int k = 0; k < MAX_DRAWN && k <= decks[d].rows; drawn += log(decks[d].rows - k), k++)
            entropy += tale->cards[d][k] * drawn;
    }
    return entropy / (tale->length + 2);
}

// --- The third reader is the oracle: it finds every derivation of a given tale, and its probability.
//
// It reads along the text, and wherever the grammar has a choice it follows all alternatives in turn; a wrong
// one soon meets a letter that differs. What comes after the alternative is kept as a chain of symbols.

typedef struct Rest { const Symbol *symbol, *end; const struct Rest *next; } Rest;

typedef struct {
    const char *text;
    size_t end;             // of the tale, before its blank line
    Table table;
    int derivations;
    double log_p;           // of the tale, all derivations together
    size_t furthest;        // the first letter that no attempt could read
} Oracle;

static int reads(Oracle *oracle, Span expected, size_t at, int capital) {
    for (int i = 0; i < expected.length; i++) {
        char c = i == 0 && capital ? upper(expected.text[0]) : expected.text[i];
        if (at + i > oracle->furthest) oracle->furthest = at + i;
        if (at + i >= oracle->end || oracle->text[at + i] != c) return 0;
    }
    return 1;
}

static void match(Oracle *oracle, const Symbol *s, const Symbol *end, const Rest *rest,
                  size_t at, int capital, double log_p) {
    for (; ; s++) {
        while (s == end && rest) {
            s = rest->symbol;
            end = rest->end;
            rest = rest->next;
        }
        if (s == end) break;
        capital |= s->capital;
        if (s->kind == RULE) {
            Rest after = {s + 1, end, rest};
            for (const Alternative *a = rules[s->rule].begin; a < rules[s->rule].end; a++)
                match(oracle, a->begin, a->end, &after, at, capital, log_p + a->log_p);
            return;
        }
        if (s->kind == DRAW) {
            const Deck *deck = &decks[s->deck];
            uint64_t drawn = oracle->table.drawn[s->deck];
            double here = log_p - log(deck->rows - __builtin_popcountll(drawn));
            for (int card = 0; card < deck->rows; card++) {
                Span text = deck->cell[card][s->column];
                if (drawn >> card & 1 || !reads(oracle, text, at, capital)) continue;
                oracle->table.drawn[s->deck] = drawn | (uint64_t)1 << card;
                if (s->variable >= 0) oracle->table.card[s->variable] = card;
                match(oracle, s + 1, end, rest, at + text.length, 0, here);
            }
            oracle->table.drawn[s->deck] = drawn;
            return;
        }
        Span text = s->kind == TEXT ? s->text : recalled(&oracle->table, s);
        if (!reads(oracle, text, at, capital)) return;
        at += text.length;
        capital = 0;
    }
    if (at > oracle->furthest) oracle->furthest = at;
    if (at < oracle->end) return;
    oracle->log_p = oracle->derivations++ ? log(exp(log_p - oracle->log_p) + 1) + oracle->log_p : log_p;
}

// -----------------------------------------------------------------------------------------------------------
// 4  the command line

static const char usage[] =
    "usage: tales [--bytes N] [--seed S] [--out FILE]    tells tales\n"
    "       tales --score FILE                           scores a text of such tales\n"
    "\n"
    "  --bytes N     how many characters, at least (2000000); the last tale is told to its end\n"
    "  --seed S      which tales (1337); the same seed gives the same tales on every machine\n"
    "  --out FILE    where to write them (standard output)\n"
    "  --score FILE  the loss of the perfect model, which knows the grammar: -log p per character, in nats\n";

// An error message is one line: what, where, what to do.
#define die(...) (fprintf(stderr, "error: " __VA_ARGS__), fputc('\n', stderr), exit(1))
#define die_usage(...) (fprintf(stderr, "error: " __VA_ARGS__), fprintf(stderr, "; see --help\n"), exit(2))

// 2000113 as 2,000,113.
static const char *with_commas(long long n, char text[32]) {
    char digits[24], *out = text;
    int length = snprintf(digits, sizeof digits, "%lld", n);
    for (int i = 0; i < length; i++) {
        if (i > 0 && (length - i) % 3 == 0) *out++ = ',';
        *out++ = digits[i];
    }
    *out = 0;
    return text;
}

static char unfinished[4096]; // the file being written, under its temporary name

static void on_signal(int signal) {
    if (*unfinished) unlink(unfinished);
    _exit(128 + signal);
}

static void write_tales(const char *path, long long bytes, uint64_t seed) {
    static Tale tale;
    const char *name = path ? path : "standard output";
    struct stat there;
    // A device or a pipe is written to as it is; a file is replaced when the new one is whole.
    int replace = path && (stat(path, &there) || S_ISREG(there.st_mode));
    if (replace && snprintf(unfinished, sizeof unfinished, "%s.tmp", name) >= (int)sizeof unfinished)
        die("--out: the name is too long; choose a shorter one");
    signal(SIGINT, on_signal), signal(SIGTERM, on_signal);
    FILE *file = replace ? fopen(unfinished, "wb") : path ? fopen(path, "wb") : stdout;
    if (!file) die("%s: cannot write: %s; give --out a file in a folder that exists", name, strerror(errno));

    double entropy = grammar_entropy();
    long long length = 0, count = 0;
    int failed = 0;
    for (; length < bytes && !failed; count++) {
        tell_tale(&tale, &seed);
        failed = fwrite(tale.text, 1, tale.length, file) != (size_t)tale.length;
        length += tale.length;
    }
    failed |= fclose(file) != 0;
    if (failed || (replace && rename(unfinished, path))) {
        int why = errno;
        if (replace) unlink(unfinished);
        die("%s: cannot write %lld bytes: %s; make room or choose another place", name, bytes, strerror(why));
    }
    char a[32], b[32];
    fprintf(stderr, "%s characters, %s tales; entropy of the grammar %.4f nats per character (%.2f bits)\n",
            with_commas(length, a), with_commas(count, b), entropy, entropy / log(2));
}

static char *read_file(const char *path, size_t *length) {
    FILE *file = fopen(path, "rb");
    if (!file) die("%s: cannot read: %s; score a text that this program wrote", path, strerror(errno));
    size_t capacity = 1 << 16, got;
    char *text = NULL;
    *length = 0;
    do {
        text = realloc(text, capacity *= 2);
        if (!text) die("%s: too long for this machine's memory; score a shorter text", path);
        got = fread(text + *length, 1, capacity - *length, file);
        *length += got;
    } while (got > 0);
    if (ferror(file)) die("%s: cannot read: %s; score a text that this program wrote", path, strerror(errno));
    if (*length == 0) die("%s: is empty; score a text that this program wrote", path);
    fclose(file);
    return text;
}

// A few characters for a message, on one line.
static const char *quote(const char *text, size_t length, char out[24]) {
    size_t i = 0;
    for (; i < length && i < 20; i++) out[i] = text[i] >= ' ' && text[i] < 127 ? text[i] : ' ';
    out[i] = 0;
    return out;
}

static void score(const char *path) {
    static const Symbol tale = {.kind = RULE, .rule = 0};
    size_t length, count = 0, ambiguous = 0;
    char *text = read_file(path, &length), a[32], b[32], q[24];
    double sum_s = 0, sum_ss = 0, sum_sl = 0, sum_ll = 0;      // s: a tale's -log p; l: its length
    for (size_t begin = 0, end; begin < length; begin = end + 2, count++) {
        for (end = begin; end < length; end++)
            if (end + 1 < length && text[end] == '\n' && text[end + 1] == '\n') break;
        int cut_short = end == length;
        size_t tale_end = end - (cut_short && text[end - 1] == '\n');     // half of its blank line
        Oracle oracle = {.text = text, .end = tale_end, .furthest = begin};
        clear_table(&oracle.table);
        match(&oracle, &tale, &tale + 1, NULL, begin, 0, 0);
        if (cut_short && (oracle.derivations || oracle.furthest == tale_end))
            die("%s: byte %zu: the text ends inside a tale; score whole tales, a blank line after each", path,
                length);
        if (!oracle.derivations)
            die("%s: byte %zu: no tale goes on with '%s' here; score a text that this program wrote",
                path, oracle.furthest, quote(text + oracle.furthest, length - oracle.furthest, q));
        ambiguous += oracle.derivations > 1;
        double surprise = -oracle.log_p, l = (double)(end + 2 - begin);
        sum_s += surprise;
        sum_ss += surprise * surprise;
        sum_sl += surprise * l;
        sum_ll += l * l;
    }
    // The error of a ratio of sums, as if each tale's distance from it were drawn independently.
    double ratio = sum_s / length;
    double error = sqrt(fmax(0, sum_ss - 2 * ratio * sum_sl + ratio * ratio * sum_ll)) / length;
    printf("%.4f nats per character (standard error %.4f): %s characters, %s tales, ", ratio, error,
           with_commas(length, a), with_commas(count, b));
    if (ambiguous) printf("%zu of them with several derivations\n", ambiguous);
    else printf("one derivation each\n");
    free(text);
    if (fflush(stdout)) die("standard output: cannot write: %s; make room elsewhere", strerror(errno));
}

static long long whole_number(const char *option, const char *text, int least) {
    char *stop;
    errno = 0;
    long long n = strtoll(text, &stop, 10);
    if (stop == text || *stop || errno || n < least)
        die_usage("%s %s: not a whole number from %d up", option, text, least);
    return n;
}

int main(int argc, char **argv) {
    const char *out = NULL, *scored = NULL;
    long long bytes = 2000000, seed = 1337;
    for (int i = 1; i < argc; i += 2) {
        const char *option = argv[i], *value = argv[i + 1];     // argv ends with NULL
        if (!strcmp(option, "--help")) return fputs(usage, stdout) < 0 || fflush(stdout);
        int known = !strcmp(option, "--bytes") || !strcmp(option, "--seed") || !strcmp(option, "--out")
            || !strcmp(option, "--score");
        if (!known) die_usage("%s: no such option", option);
        if (!value) die_usage("%s: its value is missing", option);
        if (!strcmp(option, "--bytes")) bytes = whole_number(option, value, 1);
        if (!strcmp(option, "--seed")) seed = whole_number(option, value, 0);
        if (!strcmp(option, "--out")) out = value;
        if (!strcmp(option, "--score")) scored = value;
    }
    if (scored && argc > 3) die_usage("--score goes without other options");
    prepare_grammar();
    if (scored) score(scored);
    else write_tales(out, bytes, (uint64_t)seed);
    return 0;
}
