/**
 * What a torture will do, from its seed alone: the jobs, one after the other without end, and the faults with their
 * times. Pure: the same seed makes the same plan; what comes of it depends on the machine.
 */

import { rollDice } from '../dice.ts'
import type { MischiefName } from '../mischief.ts'

export interface PlannedJob {
  /** the job's uuid; for bytes from which none can be read, a name of ours */
  readonly id: string
  /** `sailor` may succeed or fail; `refused` can only be buried */
  readonly expects: 'sailor' | 'refused'
  /** its status document can tell the reason: the bytes name a uuid, and no other job's */
  readonly hasStatus: boolean
  readonly body: Buffer
  readonly ttrSeconds: number
  readonly delaySeconds: number
  readonly priority: number
  /** a uuid may be put more than once: it is one job all the same */
  readonly copies: number
}

const BOTH_PARTIES = [
  'worker-kill',
  'worker-term',
  'worker-stop',
  'net-cut',
  'net-delay',
  'net-freeze',
  'net-half-open',
] as const
const PRIVATE_PARTIES = ['crew-kill', 'broker-kill', 'broker-stop'] as const
const S3_PARTIES = ['s3-500', 's3-503', 's3-hang', 's3-slow', 's3-reset', 's3-truncate', 's3-forget'] as const
const DISK_PARTIES = ['disk-full'] as const

export type S3FaultKind = (typeof S3_PARTIES)[number]
export type FaultKind =
  | (typeof BOTH_PARTIES)[number]
  | (typeof PRIVATE_PARTIES)[number]
  | S3FaultKind
  | (typeof DISK_PARTIES)[number]

export interface PlannedFault {
  readonly atMs: number
  readonly durationMs: number
  readonly kind: FaultKind
  /** one of several ways to do it, and which worker it meets: each kind takes what it needs of it */
  readonly choice: number
}

export interface Powers {
  /** broker and S3 are ours alone */
  readonly isPrivate: boolean
  readonly hasS3: boolean
  readonly hasSmallDisk: boolean
}

type Dice = (sides: number) => number

/** Throws of one stream of a seed; streams do not disturb each other. */
function makeDice(seed: number, stream: number): Dice {
  const start = rollDice(seed, stream, 2 ** 32)
  let throws = 0
  return (sides) => rollDice(start, ++throws, sides)
}

const FAULT_STREAM = 1
const FIRST_JOB_STREAM = 2
const SHORTEST_PAUSE_MS = 1_500
const LONGEST_PAUSE_MS = 6_000
/** No fault begins so near to the end that it could not be over by then. */
const LONGEST_FAULT_MS = 8_000

/** Longest time that each kind lasts, and shortest. Kinds without a length are over at once. */
const DURATIONS: Record<FaultKind, readonly [shortest: number, longest: number]> = {
  'worker-kill': [0, 0],
  'worker-term': [0, 0],
  'worker-stop': [500, 6_000],
  'crew-kill': [0, 0],
  'broker-kill': [100, 3_000],
  'broker-stop': [300, 3_000],
  'net-cut': [0, 0],
  'net-delay': [2_000, 8_000],
  'net-freeze': [1_000, 6_000],
  'net-half-open': [1_000, 8_000],
  's3-500': [1_000, 6_000],
  's3-503': [1_000, 6_000],
  's3-hang': [2_000, 8_000],
  's3-slow': [2_000, 8_000],
  's3-reset': [1_000, 5_000],
  's3-truncate': [1_000, 5_000],
  's3-forget': [1_000, 5_000],
  'disk-full': [500, 5_000],
}

/** Kinds are dealt as cards: none comes twice before each came once. */
export function planFaults(seed: number, lengthMs: number, powers: Powers): PlannedFault[] {
  const dice = makeDice(seed, FAULT_STREAM)
  const kinds: FaultKind[] = [
    ...BOTH_PARTIES,
    ...(powers.isPrivate ? PRIVATE_PARTIES : []),
    ...(powers.hasS3 ? S3_PARTIES : []),
    ...(powers.hasSmallDisk ? DISK_PARTIES : []),
  ]
  const pauseMs = Math.min(Math.max(lengthMs / (kinds.length + 2), SHORTEST_PAUSE_MS), LONGEST_PAUSE_MS)
  const faults: PlannedFault[] = []
  let deck: FaultKind[] = []
  for (let atMs = pauseMs; atMs < lengthMs - 1_000; atMs += pauseMs * (0.5 + dice(1000) / 1000)) {
    if (deck.length === 0) deck = shuffle(kinds, dice)
    const kind = deck.pop() as FaultKind
    const [shortest, longest] = DURATIONS[kind]
    const wanted = shortest + (dice(1000) / 1000) * (longest - shortest)
    const durationMs = Math.floor(Math.min(wanted, LONGEST_FAULT_MS, lengthMs - atMs))
    faults.push({ atMs: Math.floor(atMs), durationMs, kind, choice: dice(2 ** 16) })
  }
  return faults
}

function shuffle<T>(cards: readonly T[], dice: Dice): T[] {
  const deck = [...cards]
  for (let i = deck.length - 1; i > 0; i--) {
    const j = dice(i + 1)
    const card = deck[i] as T
    deck[i] = deck[j] as T
    deck[j] = card
  }
  return deck
}

export const SAILOR_TYPE = 'drunken_sailor'
export const WARM_SAILOR_TYPE = 'drunken_sailor_warm'

/** Over soon, whatever they are. */
const QUICK: readonly MischiefName[] = [
  'normal',
  'slow',
  'faulty',
  'daemon',
  'half-json',
  'closes-stdin',
  'holds-stdout',
  'leaves-files',
  'dies-by-signal',
  'huge-file',
  'bad-input',
  'try-later',
]
/** Go on until they are ended. */
const ENDLESS: readonly MischiefName[] = [
  'infinite-loop',
  'ignores-sigterm',
  'grandchild',
  'setsid-child',
  'floods-stdout',
  'floods-stderr',
  'eats-memory',
  'stops-itself',
  'busy-loop',
  'forks-often',
]
/** For each sailor so many of a hundred jobs; the rest is refused. */
const WILD_SHARE = 36
const QUICK_SHARE = 44
const ENDLESS_SHARE = 8
const WARM_SHARE = 6
const UNKNOWN_TYPE_SHARE = 2
const TWICE_SHARE = 5
const TTRS = [1, 1, 1, 2, 3]

/** The job of a number, from 0 on. */
export function planJob(seed: number, number: number): PlannedJob {
  const dice = makeDice(seed, FIRST_JOB_STREAM + number)
  const uuid = makeUuid(dice)
  const ttrSeconds = TTRS[dice(TTRS.length)] ?? 1
  const delaySeconds = dice(10) === 0 ? 1 + dice(3) : 0
  const priority = dice(3) === 0 ? dice(5000) : 1337
  const put = { ttrSeconds, delaySeconds, priority, copies: dice(100) < TWICE_SHARE ? 2 : 1 }
  const share = dice(100)
  if (share < WILD_SHARE + QUICK_SHARE + ENDLESS_SHARE) {
    const body = encode({ uuid, type: SAILOR_TYPE, ...headerOf(share, dice) }, payloadOf(share, dice))
    return { id: uuid, expects: 'sailor', hasStatus: true, body, ...put }
  }
  if (share < WILD_SHARE + QUICK_SHARE + ENDLESS_SHARE + WARM_SHARE) {
    const body = encode({ uuid, type: WARM_SAILOR_TYPE }, { seed: dice(2 ** 31), sleep: dice(20) / 100 })
    return { id: uuid, expects: 'sailor', hasStatus: true, body, ...put }
  }
  if (share < WILD_SHARE + QUICK_SHARE + ENDLESS_SHARE + WARM_SHARE + UNKNOWN_TYPE_SHARE) {
    const body = encode({ uuid, type: `no_such_${dice(100)}` }, {})
    return { id: uuid, expects: 'refused', hasStatus: true, body, ...put }
  }
  return { ...malformed(seed, number, uuid, dice), ...put, copies: 1 }
}

function headerOf(share: number, dice: Dice): object {
  if (share >= WILD_SHARE + QUICK_SHARE) return { max_attempts: 1 + dice(2) }
  return dice(20) === 0 ? { tags: { deck: 'poop' } } : {}
}

function payloadOf(share: number, dice: Dice): object {
  const sea = { seed: dice(2 ** 31), sleep: (5 + dice(26)) / 100, megabytes: 1 }
  if (share < WILD_SHARE) return { ...sea, wild: true }
  const names = share < WILD_SHARE + QUICK_SHARE ? QUICK : ENDLESS
  // Half of the quick ones are normal: most jobs of this world are.
  const outcome = names === QUICK && dice(2) === 0 ? 'normal' : names[dice(names.length)]
  return { ...sea, outcome }
}

/** Bytes that are no work package, each in its own way. */
function malformed(seed: number, number: number, uuid: string, dice: Dice) {
  const nameless = { id: `malformed-${number}`, expects: 'refused', hasStatus: false } as const
  const named = { id: uuid, expects: 'refused', hasStatus: true } as const
  switch (dice(8)) {
    case 0:
      return { ...nameless, body: Buffer.from('yo ho ho') }
    case 1:
      return { ...nameless, body: Buffer.from([0x5b, 0xff, 0xfe, 0x00, 0x5d]) }
    case 2:
      return { ...nameless, body: Buffer.from(`[{"uuid":"${uuid}"`) }
    case 3:
      return { ...nameless, body: Buffer.from(`[${'['.repeat(500)}${']'.repeat(500)},{}]`) }
    case 4:
      return { ...nameless, body: encode({ uuid: '../../etc/passwd', type: SAILOR_TYPE }, {}) }
    case 5:
      return { ...named, body: encode({ uuid, type: '../sailor' }, {}) }
    case 6:
      return { ...named, body: encode({ uuid, type: SAILOR_TYPE, max_attempts: -1 }, {}) }
    default: {
      // In the name of an earlier job, which must not be touched by it.
      const victim = makeUuid(makeDice(seed, FIRST_JOB_STREAM + Math.max(0, number - 1 - dice(5))))
      return { ...nameless, body: encode({ uuid: victim, type: '' }, {}) }
    }
  }
}

function encode(header: object, payload: object): Buffer {
  return Buffer.from(JSON.stringify([header, payload]))
}

function makeUuid(dice: Dice): string {
  return Array.from({ length: 4 }, () =>
    dice(2 ** 32)
      .toString(16)
      .padStart(8, '0'),
  ).join('')
}
