/**
 * What a broker must say, on the wire: bytes in, replies out. Written for no broker in particular; it is run against
 * beanstalkd and against ours.
 *
 * `TUBE` and `TUBE2` are names of the case's own. `#1` is the number of the first job that was put in the case. Values
 * that depend on the clock or on the process are written `*`.
 */

/** A client by its letter, what it sends (in pieces, if an array), and the replies to come, each with its body. */
export type Step =
  | readonly [client: string, bytes: string | readonly string[], ...replies: string[]]
  | { readonly waitMs: number }
  | { readonly close: string }
  | { readonly hangUp: string }
  | { readonly nothingFor: string }

export interface Case {
  readonly title: string
  readonly steps: readonly Step[]
}

const put = (who: string, body: string, number: number, how = '10 0 60'): Step => [
  who,
  `put ${how} ${body.length}\r\n${body}\r\n`,
  `INSERTED #${number}\r\n`,
]
const use = (who: string, tube = 'TUBE'): Step => [who, `use ${tube}\r\n`, `USING ${tube}\r\n`]
const watch = (who: string, tube = 'TUBE'): Step => [
  who,
  `watch ${tube}\r\nignore default\r\n`,
  'WATCHING 2\r\n',
  'WATCHING 1\r\n',
]
const both = (who: string): Step[] => [use(who), watch(who)]
const got = (number: number, body: string) => `RESERVED #${number} ${body.length}\r\n${body}\r\n`
const found = (number: number, body: string) => `FOUND #${number} ${body.length}\r\n${body}\r\n`
const take = (who: string, number: number, body: string): Step => [who, 'reserve\r\n', got(number, body)]
const NOT_FOUND = 'NOT_FOUND\r\n'
const BAD = 'BAD_FORMAT\r\n'

const ORDER: Case[] = [
  {
    title: 'hands out the most urgent job first, and equals in the order of their numbers',
    steps: [
      ...both('A'),
      put('A', 'late', 1, '20 0 60'),
      put('A', 'b', 2),
      put('A', 'c', 3),
      put('A', 'first', 4, '0 0 60'),
      take('A', 4, 'first'),
      take('A', 2, 'b'),
      take('A', 3, 'c'),
      take('A', 1, 'late'),
    ],
  },
  {
    title: 'hands out the most urgent job of all watched tubes',
    steps: [
      use('A', 'TUBE2'),
      put('A', 'far', 1, '5 0 60'),
      ...both('A'),
      put('A', 'near', 2, '9 0 60'),
      ['A', 'watch TUBE2\r\n', 'WATCHING 2\r\n'],
      take('A', 1, 'far'),
      take('A', 2, 'near'),
    ],
  },
  {
    title: 'orders priorities as unsigned 32-bit numbers',
    steps: [
      ...both('A'),
      put('A', 'last', 1, '4294967295 0 60'),
      put('A', 'middle', 2, '2147483648 0 60'),
      put('A', 'first', 3, '2147483647 0 60'),
      take('A', 3, 'first'),
      take('A', 2, 'middle'),
      take('A', 1, 'last'),
    ],
  },
  {
    title: 'serves those who wait, the first one first, then as beanstalkd turns',
    steps: [
      ...['A', 'B', 'C', 'D'].map((who): Step => watch(who)),
      ...['A', 'B', 'C', 'D'].map((who): Step => [who, 'reserve\r\n']),
      use('P'),
      put('P', '1', 1),
      put('P', '2', 2),
      put('P', '3', 3),
      put('P', '4', 4),
      ['A', '', got(1, '1')],
      ['B', '', got(2, '2')],
      ['D', '', got(3, '3')],
      ['C', '', got(4, '4')],
    ],
  },
  {
    title: 'gives a released job with its new priority its place',
    steps: [
      ...both('A'),
      put('A', 'a', 1),
      put('A', 'b', 2),
      take('A', 1, 'a'),
      ['A', 'release #1 11 0\r\n', 'RELEASED\r\n'],
      take('A', 2, 'b'),
      take('A', 1, 'a'),
    ],
  },
]

const LIVES: Case[] = [
  {
    title: 'tells all of a job, with the keys in their order',
    steps: [
      ...both('A'),
      put('A', 'x', 1, '7 0 0'),
      [
        'A',
        'stats-job #1\r\n',
        'OK\r\n---\nid: #1\ntube: TUBE\nstate: ready\npri: 7\nage: *\ndelay: 0\nttr: 1\ntime-left: *\nfile: *\nreserves: 0\ntimeouts: 0\nreleases: 0\nburies: 0\nkicks: 0\n\r\n',
      ],
      take('A', 1, 'x'),
      ['A', 'release #1 8 100\r\n', 'RELEASED\r\n'],
      ['A', 'kick 5\r\n', 'KICKED 1\r\n'],
      take('A', 1, 'x'),
      ['A', 'bury #1 9\r\n', 'BURIED\r\n'],
      [
        'A',
        'stats-job #1\r\n',
        'OK\r\n---\nid: #1\ntube: TUBE\nstate: buried\npri: 9\nage: *\ndelay: 100\nttr: 1\ntime-left: *\nfile: *\nreserves: 2\ntimeouts: 0\nreleases: 1\nburies: 1\nkicks: 1\n\r\n',
      ],
    ],
  },
  {
    title: 'lets only the holder release, bury, touch and delete',
    steps: [
      ...both('A'),
      put('A', 'x', 1),
      take('A', 1, 'x'),
      ['B', 'release #1 1 0\r\n', NOT_FOUND],
      ['B', 'bury #1 1\r\n', NOT_FOUND],
      ['B', 'touch #1\r\n', NOT_FOUND],
      ['B', 'delete #1\r\n', NOT_FOUND],
      ['B', 'reserve-job #1\r\n', NOT_FOUND],
      ['B', 'kick-job #1\r\n', NOT_FOUND],
      ['A', 'touch #1\r\n', 'TOUCHED\r\n'],
      ['A', 'delete #1\r\n', 'DELETED\r\n'],
      ['A', 'delete #1\r\n', NOT_FOUND],
    ],
  },
  {
    title: 'lets anybody delete what is ready, delayed or buried',
    steps: [
      ...both('A'),
      put('A', 'ready', 1),
      put('A', 'delayed', 2, '1 100 60'),
      put('A', 'buried', 3, '0 0 60'),
      take('A', 3, 'buried'),
      ['A', 'bury #3 1\r\n', 'BURIED\r\n'],
      ['B', 'delete #1\r\n', 'DELETED\r\n'],
      ['B', 'delete #2\r\n', 'DELETED\r\n'],
      ['B', 'delete #3\r\n', 'DELETED\r\n'],
    ],
  },
  {
    title: 'reserves by number what is ready, delayed or buried',
    steps: [
      ...both('A'),
      put('A', 'delayed', 1, '1 100 60'),
      put('A', 'buried', 2),
      take('A', 2, 'buried'),
      ['A', 'bury #2 1\r\n', 'BURIED\r\n'],
      put('A', 'ready', 3),
      ...[1, 2, 3].map(
        (n): Step => ['B', `reserve-job #${n}\r\n`, got(n, ['delayed', 'buried', 'ready'][n - 1] ?? '')],
      ),
      ['B', 'reserve-job 999999999\r\n', NOT_FOUND],
    ],
  },
  {
    title: 'frees the jobs of a client that is lost, without counting a release',
    steps: [
      ...both('A'),
      put('A', 'x', 1),
      watch('B'),
      take('A', 1, 'x'),
      ['B', 'reserve\r\n'],
      { close: 'A' },
      ['B', '', got(1, 'x')],
      [
        'B',
        'stats-job #1\r\n',
        'OK\r\n---\nid: #1\ntube: TUBE\nstate: reserved\npri: 10\nage: *\ndelay: 0\nttr: 60\ntime-left: *\nfile: *\nreserves: 2\ntimeouts: 0\nreleases: 0\nburies: 0\nkicks: 0\n\r\n',
      ],
    ],
  },
  {
    title: 'frees the jobs of a client that quits',
    steps: [
      ...both('A'),
      put('A', 'x', 1),
      take('A', 1, 'x'),
      ['A', 'quit\r\n', 'closed'],
      watch('B'),
      take('B', 1, 'x'),
    ],
  },
  {
    title: 'kicks buried jobs in the order of their burial, and delayed ones only when none is buried',
    steps: [
      ...both('A'),
      put('A', 'd', 1, '0 100 60'),
      put('A', 'a', 2),
      put('A', 'b', 3),
      take('A', 2, 'a'),
      take('A', 3, 'b'),
      ['A', 'bury #3 10\r\n', 'BURIED\r\n'],
      ['A', 'bury #2 10\r\n', 'BURIED\r\n'],
      ['A', 'peek-buried\r\n', found(3, 'b')],
      ['A', 'kick 1\r\n', 'KICKED 1\r\n'],
      ['A', 'peek-buried\r\n', found(2, 'a')],
      ['A', 'kick 9\r\n', 'KICKED 1\r\n'],
      ['A', 'peek-delayed\r\n', found(1, 'd')],
      ['A', 'kick 9\r\n', 'KICKED 1\r\n'],
      ['A', 'kick 9\r\n', 'KICKED 0\r\n'],
      ['A', 'peek-ready\r\n', found(1, 'd')],
    ],
  },
  {
    title: 'kicks one job by its number',
    steps: [
      ...both('A'),
      put('A', 'd', 1, '0 100 60'),
      ['B', 'kick-job #1\r\n', 'KICKED\r\n'],
      ['B', 'kick-job #1\r\n', NOT_FOUND],
    ],
  },
  {
    title: 'peeks into the tube that is used',
    steps: [
      ...both('A'),
      put('A', 'x', 1),
      ['A', 'peek-ready\r\n', found(1, 'x')],
      ['B', 'peek #1\r\n', found(1, 'x')],
      use('A', 'TUBE2'),
      ['A', 'peek-ready\r\npeek-delayed\r\npeek-buried\r\n', NOT_FOUND, NOT_FOUND, NOT_FOUND],
    ],
  },
]

const TIMES: Case[] = [
  {
    title: 'makes a delayed job ready when its time has come',
    steps: [
      ...both('A'),
      put('A', 'x', 1, '0 1 60'),
      ['A', 'reserve-with-timeout 0\r\n', 'TIMED_OUT\r\n'],
      ['A', 'reserve-with-timeout 5\r\n', got(1, 'x')],
    ],
  },
  {
    title: 'takes a job back when its TTR is over, and counts it',
    steps: [
      ...both('A'),
      put('A', 'x', 1, '0 0 1'),
      watch('B'),
      take('A', 1, 'x'),
      ['B', 'reserve\r\n'],
      // beanstalkd looks again only when something happens, if it looked in the very microsecond of the deadline.
      { waitMs: 1100 },
      ['A', 'list-tube-used\r\n', 'USING TUBE\r\n'],
      ['B', '', got(1, 'x')],
      ['A', 'touch #1\r\n', NOT_FOUND],
      [
        'B',
        'stats-job #1\r\n',
        'OK\r\n---\nid: #1\ntube: TUBE\nstate: reserved\npri: 0\nage: *\ndelay: 0\nttr: 1\ntime-left: *\nfile: *\nreserves: 2\ntimeouts: 1\nreleases: 0\nburies: 0\nkicks: 0\n\r\n',
      ],
    ],
  },
  {
    title: 'says DEADLINE_SOON at once to who holds a job in its last second',
    steps: [
      ...both('A'),
      put('A', 'x', 1, '0 0 1'),
      take('A', 1, 'x'),
      ['A', 'reserve\r\n', 'DEADLINE_SOON\r\n'],
      ['A', 'reserve-with-timeout 0\r\n', 'DEADLINE_SOON\r\n'],
      put('A', 'y', 2),
      take('A', 2, 'y'),
    ],
  },
  {
    title: 'says DEADLINE_SOON to who waits, when the last second begins',
    steps: [
      ...both('A'),
      put('A', 'x', 1, '0 0 2'),
      take('A', 1, 'x'),
      ['A', 'reserve\r\n'],
      { waitMs: 500 },
      { nothingFor: 'A' },
      ['A', '', 'DEADLINE_SOON\r\n'],
      ['A', 'touch #1\r\n', 'TOUCHED\r\n'],
      ['A', 'reserve-with-timeout 0\r\n', 'TIMED_OUT\r\n'],
    ],
  },
  {
    title: 'says TIMED_OUT after the time that a client would wait',
    steps: [
      watch('A'),
      ['A', 'reserve-with-timeout 1\r\n'],
      { waitMs: 500 },
      { nothingFor: 'A' },
      ['A', '', 'TIMED_OUT\r\n'],
    ],
  },
  {
    title: 'hands nothing out of a tube that is paused',
    steps: [
      ...both('A'),
      put('A', 'x', 1),
      ['B', 'pause-tube TUBE 1\r\n', 'PAUSED\r\n'],
      ['A', 'reserve-with-timeout 0\r\n', 'TIMED_OUT\r\n'],
      ['A', 'reserve\r\n', got(1, 'x')],
      ['B', 'pause-tube TUBE3 1\r\n', NOT_FOUND],
    ],
  },
  {
    title: 'ends a pause by one of no time',
    steps: [
      ...both('A'),
      put('A', 'x', 1),
      ['B', 'pause-tube TUBE 100\r\n', 'PAUSED\r\n'],
      ['A', 'reserve\r\n'],
      ['B', 'pause-tube TUBE 0\r\n', 'PAUSED\r\n'],
      ['A', '', got(1, 'x')],
    ],
  },
]

const TUBES: Case[] = [
  {
    title: 'tells all of a tube, with the keys in their order',
    steps: [
      ...both('A'),
      put('A', 'x', 1, '1023 0 60'),
      put('A', 'y', 2, '1024 0 60'),
      put('A', 'z', 3, '1024 100 60'),
      ['A', 'pause-tube TUBE 100\r\n', 'PAUSED\r\n'],
      ['A', 'delete #2\r\n', 'DELETED\r\n'],
      [
        'A',
        'stats-tube TUBE\r\n',
        'OK\r\n---\nname: TUBE\ncurrent-jobs-urgent: 1\ncurrent-jobs-ready: 1\ncurrent-jobs-reserved: 0\ncurrent-jobs-delayed: 1\ncurrent-jobs-buried: 0\ntotal-jobs: 3\ncurrent-using: 1\ncurrent-watching: 1\ncurrent-waiting: 0\ncmd-delete: 1\ncmd-pause-tube: 1\npause: 100\npause-time-left: *\n\r\n',
      ],
    ],
  },
  {
    title: 'forgets a tube that has neither jobs nor clients',
    steps: [
      use('A'),
      put('A', 'x', 1),
      use('A', 'default'),
      ['B', 'stats-tube TUBE\r\n', tubeWithOneJob()],
      ['B', 'delete #1\r\n', 'DELETED\r\n'],
      ['B', 'stats-tube TUBE\r\n', NOT_FOUND],
    ],
  },
  {
    title: 'watches, ignores and lists',
    steps: [
      ['A', 'list-tubes-watched\r\n', 'OK\r\n---\n- default\n\r\n'],
      ['A', 'ignore default\r\n', 'NOT_IGNORED\r\n'],
      ['A', 'ignore TUBE\r\n', 'WATCHING 1\r\n'],
      ['A', 'watch TUBE\r\n', 'WATCHING 2\r\n'],
      ['A', 'watch TUBE\r\n', 'WATCHING 2\r\n'],
      ['A', 'watch TUBE2\r\n', 'WATCHING 3\r\n'],
      ['A', 'ignore default\r\n', 'WATCHING 2\r\n'],
      ['A', 'list-tubes-watched\r\n', 'OK\r\n---\n- TUBE2\n- TUBE\n\r\n'],
      ['A', 'list-tube-used\r\n', 'USING default\r\n'],
    ],
  },
  {
    title: 'takes names of 200 bytes of its alphabet, and no others',
    steps: [
      ['A', `use ${'n'.repeat(200)}\r\n`, `USING ${'n'.repeat(200)}\r\n`],
      ['A', `use ${'n'.repeat(201)}\r\n`, BAD],
      ['A', 'use aA0-+/;.$_()\r\n', 'USING aA0-+/;.$_()\r\n'],
      [
        'A',
        'use -a\r\nuse \r\nuse a b\r\nuse a*\r\nuse \xe4\r\nwatch -\r\nignore -\r\nstats-tube -\r\n',
        ...Array(8).fill(BAD),
      ],
    ],
  },
]

function tubeWithOneJob(): string {
  return 'OK\r\n---\nname: TUBE\ncurrent-jobs-urgent: 1\ncurrent-jobs-ready: 1\ncurrent-jobs-reserved: 0\ncurrent-jobs-delayed: 0\ncurrent-jobs-buried: 0\ntotal-jobs: 1\ncurrent-using: 0\ncurrent-watching: 0\ncurrent-waiting: 0\ncmd-delete: 0\ncmd-pause-tube: 0\npause: 0\npause-time-left: *\n\r\n'
}

const BYTES: Case[] = [
  {
    title: 'keeps every byte of a body',
    steps: [
      ...both('A'),
      put('A', Array.from({ length: 256 }, (_, n) => String.fromCharCode(n)).join(''), 1),
      take('A', 1, Array.from({ length: 256 }, (_, n) => String.fromCharCode(n)).join('')),
      put('A', '', 2),
      take('A', 2, ''),
    ],
  },
  {
    title: 'takes a body of 65535 bytes, in pieces',
    steps: [
      ...both('A'),
      ['A', ['put 10 0 60 65535', '\r', '\n', 'b'.repeat(40000), 'b'.repeat(25535), '\r', '\n'], 'INSERTED #1\r\n'],
      take('A', 1, 'b'.repeat(65535)),
    ],
  },
  {
    title: 'skips a body that is too big, and goes on behind it',
    steps: [
      [
        'A',
        ['put 1 0 60 65536\r\n', 'b'.repeat(40000), `${'b'.repeat(25536)}\r\nlist-tube-used\r\n`],
        'JOB_TOO_BIG\r\n',
        'USING default\r\n',
      ],
      ['A', `put 1 0 60 70000\r\n${'b'.repeat(70000)}\r\nlist-tube-used\r\n`, 'JOB_TOO_BIG\r\n', 'USING default\r\n'],
      ['A', `put 1 0 60 70000x\r\n${'b'.repeat(70000)}\r\nlist-tube-used\r\n`, 'JOB_TOO_BIG\r\n', 'USING default\r\n'],
    ],
  },
  {
    title: 'expects the end of a line behind a body',
    steps: [
      ['A', 'put 1 0 60 3\r\nabcde', 'EXPECTED_CRLF\r\n'],
      ['A', 'put 1 0 60 3\r\nabcdefg\r\n', 'EXPECTED_CRLF\r\n', 'UNKNOWN_COMMAND\r\n'],
    ],
  },
  {
    title: 'takes many commands at once, and answers them in order',
    steps: [
      use('A'),
      [
        'A',
        'put 1 0 60 1\r\na\r\nput 1 0 60 1\r\nb\r\nwatch TUBE\r\npeek-ready\r\nhello\r\n',
        'INSERTED #1\r\n',
        'INSERTED #2\r\n',
        'WATCHING 2\r\n',
        found(1, 'a'),
        'UNKNOWN_COMMAND\r\n',
      ],
    ],
  },
  {
    title: 'does what stands behind a reserve only when this is answered',
    steps: [
      ...both('A'),
      ['A', 'reserve\r\nlist-tube-used\r\ndelete 999999999\r\n'],
      { nothingFor: 'A' },
      use('B'),
      put('B', 'x', 1),
      ['A', '', got(1, 'x'), 'USING TUBE\r\n', NOT_FOUND],
    ],
  },
  {
    title: 'answers all that came from a client that has hung up on its side, and waits for nothing',
    steps: [
      ...both('A'),
      ['A', 'put 1 0 60 1\r\na\r\nlist-tube-used\r\n', 'INSERTED #1\r\n', 'USING TUBE\r\n'],
      ['A', 'reserve\r\nreserve\r\nlist-tube-used\r\n', got(1, 'a')],
      { hangUp: 'A' },
      ['A', '', 'TIMED_OUT\r\n', 'USING TUBE\r\n', 'closed'],
      watch('B'),
      take('B', 1, 'a'),
    ],
  },
  {
    title: 'takes lines of 224 bytes with their end, and skips what is longer',
    steps: [
      ['A', `${'x'.repeat(222)}\r\nlist-tube-used\r\n`, 'UNKNOWN_COMMAND\r\n', 'USING default\r\n'],
      ['A', `${'x'.repeat(224)}\r\nlist-tube-used\r\n`, BAD, 'USING default\r\n'],
      ['A', `${'x'.repeat(5000)}\r\nlist-tube-used\r\n`, BAD, 'USING default\r\n'],
      // The end of the line lies across two windows of 224 bytes: it is not seen, and takes the next command along.
      ['A', `${'x'.repeat(223)}\r\nlist-tubes\r\nlist-tube-used\r\n`, BAD, 'USING default\r\n'],
      ['A', `put 1 0 60 ${'0'.repeat(220)}1\r\na\r\n`, BAD, 'UNKNOWN_COMMAND\r\n'],
    ],
  },
  {
    title: 'takes no line feed alone for the end of a line, nor a carriage return alone',
    steps: [
      ['A', 'list-tube-used\nlist-tube-used\r\n', BAD],
      ['A', `list-tube-used\rx\r\n${'y'.repeat(210)}\r\nlist-tube-used\r\n`, BAD, 'USING default\r\n'],
    ],
  },
]

const bad = (lines: string[], replies: string[] = lines.map(() => BAD)): Step => [
  'A',
  lines.map((line) => `${line}\r\n`).join(''),
  ...replies,
]
const U = 'UNKNOWN_COMMAND\r\n'

const FORMATS: Case[] = [
  {
    title: 'knows commands by their beginning, and wants them in lower case',
    steps: [
      bad(
        ['', ' ', 'hello', 'PUT 1 1 1 1', 'put', 'peek', 'delete', 'kick', 'kick-job', 'touch', 'use', 'reserve-jo'],
        [U, U, U, U, U, U, U, U, U, U, U, BAD],
      ),
      bad([
        'reserve ',
        'reserve 1',
        'reserved',
        'stats ',
        'stats-',
        'list-tubesx',
        'list-tube-usedx',
        'peek-readyx',
        'pause-tube',
        'statsx',
      ]),
      ['A', 'quitting\r\n', 'closed'],
    ],
  },
  {
    title: 'wants numbers where numbers belong',
    steps: [
      bad([
        'put -1 0 1 1',
        'put 1 0 1',
        'put 1 0 1 x',
        'put a 0 1 1',
        'put 4294967296 0 1 1',
        'put 1 4294967296 1 1',
        'put 1 1 4294967296 1',
        'put 1 1 1 4294967296',
        'put 1 1 1 1x',
        'put 1 1 1 1 ',
        'put +1 1 1 1',
        'put 1,1 1 1',
      ]),
      bad([
        'delete x',
        'delete -1',
        'delete 1x',
        'delete 1 ',
        'delete  ',
        'delete 18446744073709551616',
        'peek 1 1',
        'touch 0x1',
        'kick-job a',
        'stats-job  ',
        'reserve-job 1.',
      ]),
      bad(['delete 18446744073709551615', 'delete   1844674407370955161', 'peek 0'], [NOT_FOUND, NOT_FOUND, NOT_FOUND]),
      bad([
        'release 1',
        'release 1 1',
        'release 1 1 x',
        'release 1 1 1x',
        'release 1 4294967296 1',
        'bury 1',
        'bury 1 x',
        'bury 1 1 1',
        'pause-tube a',
        'pause-tube a x',
        'pause-tube a 1x',
        'pause-tube -a 1',
        'pause-tube',
      ]),
      bad(['release 1844674407370955161  1   1', 'bury 1844674407370955161  1'], [NOT_FOUND, NOT_FOUND]),
    ],
  },
  {
    title: 'reads the numbers of kick and of reserve-with-timeout as C does',
    steps: [
      use('A'),
      watch('A'),
      bad([
        'kick x',
        'kick ',
        'kick 18446744073709551616',
        'reserve-with-timeout 9223372036854775808',
        'reserve-with-timeout',
      ]),
      bad(
        ['kick 1x', 'kick -1', 'kick  +2', 'kick 18446744073709551615', 'kick 4294967296'],
        Array(5).fill('KICKED 0\r\n'),
      ),
      bad(
        [
          'reserve-with-timeout x',
          'reserve-with-timeout 0x',
          'reserve-with-timeout  +0',
          'reserve-with-timeout 4294967296',
          'reserve-with-timeout ',
        ],
        Array(5).fill('TIMED_OUT\r\n'),
      ),
      ['A', 'reserve-with-timeout -1\r\n'],
      { nothingFor: 'A' },
      ['B', 'use TUBE\r\nput 1 0 60 1\r\na\r\n', 'USING TUBE\r\n', 'INSERTED #1\r\n'],
      ['A', '', got(1, 'a')],
    ],
  },
  {
    title: 'refuses a NUL, wherever it stands',
    steps: [bad(['hello\0', '\0', 'use a\0b', 'list-tubes\0'])],
  },
]

export const CASES: readonly Case[] = [...ORDER, ...LIVES, ...TIMES, ...TUBES, ...BYTES, ...FORMATS]
