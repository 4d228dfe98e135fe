import { once } from 'node:events'
import { closeSync } from 'node:fs'
import { open, symlink, writeFile } from 'node:fs/promises'
import { setTimeout as waitMs } from 'node:timers/promises'

/** Whatever a mischief leaves behind ends by itself after this time, so that a forgotten one does no lasting harm. */
export const HELPER_SECONDS = 120
const MAX_FORKS_ALIVE = 20
const MEBIBYTE = 1024 * 1024
/** Node's timers are 32 bits of milliseconds; a longer one would fire at once. */
const LONGEST_TIMER_MS = 2 ** 31 - 1

export const MAX_MEGABYTES = 4096

/** How a mischief ends when nobody waits for its leftovers. `killed` names the weakest signal that ends it. */
type End =
  | { kind: 'exits'; code: number }
  | { kind: 'dies'; signal: NodeJS.Signals }
  | { kind: 'killed'; by: 'SIGTERM' | 'SIGKILL' }

/** What the voyage gives to a mischief. `megabytes` is undefined when the mischief's own default holds. */
export type Sea = { sleepSeconds: number; megabytes: number | undefined }

type Mischief = {
  description: string
  /** What `-v` prints, as the ancestor worded it where the mischief is one of the ancestor's. */
  line: string
  end: End
  /** True when a process of it is alive after the main process has ended. */
  leavesProcess?: true
  /** Done before the line is printed, so that who reads the line may rely on it. */
  prepare?: () => void
  /** Resolves to the exit code of the program. */
  run: (sea: Sea) => Promise<number>
}

/** A voyage without `wild` rolls these; the place is the ancestor's dice value. */
const CLASSIC = ['normal', 'slow', 'faulty', 'infinite-loop'] as const satisfies readonly MischiefName[]

/** The order counts: a wild voyage rolls a place in this table, so a new mischief changes the wild seeds. */
const MISCHIEFS = {
  normal: {
    description: 'sleeps SECONDS',
    line: 'Drunken Sailor: Normal execution.',
    end: { kind: 'exits', code: 0 },
    run: async (sea) => {
      await sleep(sea.sleepSeconds)
      return 0
    },
  },
  slow: {
    description: 'sleeps twice SECONDS',
    line: 'Drunken Sailor: Slow execution.',
    end: { kind: 'exits', code: 0 },
    run: async (sea) => {
      await sleep(2 * sea.sleepSeconds)
      return 0
    },
  },
  faulty: {
    description: 'fails at once',
    line: 'Drunken Sailor: Faulty execution.',
    end: { kind: 'exits', code: 10 },
    run: async () => 10,
  },
  'infinite-loop': {
    description: 'sleeps for ever, twice SECONDS at a time',
    line: 'Drunken Sailor: Infinite loop. ',
    end: { kind: 'killed', by: 'SIGTERM' },
    run: async (sea) => {
      // At least a second: with SECONDS 0 the ancestor burnt a processor here.
      for (;;) await sleep(Math.max(2 * sea.sleepSeconds, 1))
    },
  },
  'ignores-sigterm': {
    description: 'traps SIGTERM, SIGINT and SIGHUP, and goes on for ever',
    line: 'Drunken Sailor: Ignores SIGTERM.',
    end: { kind: 'killed', by: 'SIGKILL' },
    prepare: ignoreSignals,
    run: waitForEver,
  },
  grandchild: {
    description: 'has a child that has a sleeping child, all in one process group, and waits for ever',
    line: 'Drunken Sailor: Spawns a grandchild.',
    end: { kind: 'killed', by: 'SIGTERM' },
    leavesProcess: true,
    run: async () => {
      await spawnHelper('sh', ['-c', `sleep ${HELPER_SECONDS} & wait`], 'inherit', false)
      return waitForEver()
    },
  },
  'setsid-child': {
    description: 'has a child in a session of its own, which survives the kill of the group, and waits for ever',
    line: 'Drunken Sailor: Spawns a child in its own session.',
    end: { kind: 'killed', by: 'SIGTERM' },
    leavesProcess: true,
    run: async () => {
      await spawnHelper('sleep', [String(HELPER_SECONDS)], 'ignore', true)
      return waitForEver()
    },
  },
  daemon: {
    description: 'forks twice: leaves a sleeping daemon without a parent, in a session of its own',
    line: 'Drunken Sailor: Spawns a daemon.',
    end: { kind: 'exits', code: 0 },
    leavesProcess: true,
    run: async () => {
      const middle = await spawnHelper('sh', ['-c', `sleep ${HELPER_SECONDS} &`], 'ignore', true)
      if (middle.exitCode === null) await once(middle, 'exit')
      return 0
    },
  },
  'floods-stdout': {
    description: 'writes to stdout for ever, as fast as it is read',
    line: 'Drunken Sailor: Floods stdout.',
    end: { kind: 'killed', by: 'SIGTERM' },
    run: () => flood(process.stdout),
  },
  'floods-stderr': {
    description: 'writes to stderr for ever, as fast as it is read',
    line: 'Drunken Sailor: Floods stderr.',
    end: { kind: 'killed', by: 'SIGTERM' },
    run: () => flood(process.stderr),
  },
  'half-json': {
    description: 'prints half of a JSON document',
    line: 'Drunken Sailor: Prints half a JSON document.',
    end: { kind: 'exits', code: 0 },
    run: async () => {
      await writeAll(process.stdout, '{"forecast": [{"hour": 1, "celsius": 11.5}, {"hour": 2, "cel')
      return 0
    },
  },
  'closes-stdin': {
    description: 'closes stdin unread, then sleeps SECONDS',
    line: 'Drunken Sailor: Closes stdin unread.',
    end: { kind: 'exits', code: 0 },
    run: async (sea) => {
      closeSync(0)
      await sleep(sea.sleepSeconds)
      return 0
    },
  },
  'eats-memory': {
    description: 'takes MEGABYTES (512) of memory, touches every page, and waits for ever',
    line: 'Drunken Sailor: Eats memory.',
    end: { kind: 'killed', by: 'SIGTERM' },
    run: async (sea) => {
      await eatMemory(sea.megabytes ?? 512)
      return waitForEver()
    },
  },
  'dies-by-signal': {
    description: 'sends SIGSEGV to itself, without a core file',
    line: 'Drunken Sailor: Dies by a signal.',
    end: { kind: 'dies', signal: 'SIGSEGV' },
    run: async () => {
      const { spawnSync } = await import('node:child_process')
      // Node cannot set resource limits. Where prlimit is missing a core file may stay; nothing else changes.
      spawnSync('prlimit', ['--core=0', '--pid', String(process.pid)], { stdio: 'ignore' })
      process.kill(process.pid, 'SIGSEGV')
      return waitForEver()
    },
  },
  'stops-itself': {
    description: 'sends SIGSTOP to itself, and waits for ever if it is continued',
    line: 'Drunken Sailor: Stops itself.',
    end: { kind: 'killed', by: 'SIGKILL' },
    run: async () => {
      process.kill(process.pid, 'SIGSTOP')
      return waitForEver()
    },
  },
  'holds-stdout': {
    description: 'leaves a child that holds stdout open',
    line: 'Drunken Sailor: Leaves a child that holds stdout.',
    end: { kind: 'exits', code: 0 },
    leavesProcess: true,
    run: async () => {
      await spawnHelper('sleep', [String(HELPER_SECONDS)], 'inherit', false)
      return 0
    },
  },
  'huge-file': {
    description: 'writes huge-file.bin of MEGABYTES (256) in the working directory',
    line: 'Drunken Sailor: Writes a huge file.',
    end: { kind: 'exits', code: 0 },
    run: async (sea) => {
      await writeHugeFile(sea.megabytes ?? 256)
      return 0
    },
  },
  'bad-input': {
    description: 'says that its input is bad',
    line: 'Drunken Sailor: Refuses its input.',
    end: { kind: 'exits', code: 65 },
    run: async () => {
      await writeAll(process.stderr, 'drunken-sailor: the input is bad, no retry will help\n')
      return 65
    },
  },
  'try-later': {
    description: 'asks to be tried later',
    line: 'Drunken Sailor: Asks to be tried later.',
    end: { kind: 'exits', code: 75 },
    run: async () => {
      await writeAll(process.stderr, 'drunken-sailor: not now, try later\n')
      return 75
    },
  },
  'busy-loop': {
    description: 'burns one processor for ever',
    line: 'Drunken Sailor: Busy loop.',
    end: { kind: 'killed', by: 'SIGTERM' },
    run: async () => {
      for (;;);
    },
  },
  'forks-often': {
    description: `ignores SIGTERM and keeps ${MAX_FORKS_ALIVE} short-lived children, new ones all the time; stops after ${HELPER_SECONDS} s`,
    line: 'Drunken Sailor: Forks often.',
    end: { kind: 'killed', by: 'SIGKILL' },
    leavesProcess: true,
    prepare: ignoreSignals,
    run: forkOften,
  },
  'leaves-files': {
    description: 'leaves outputs, a link to /etc/passwd, a fifo, a dot file, a name with a newline, a result.json',
    line: 'Drunken Sailor: Leaves files.',
    end: { kind: 'exits', code: 0 },
    run: async () => {
      await leaveFiles()
      return 0
    },
  },
} satisfies Record<string, Mischief>

export type MischiefName = keyof typeof MISCHIEFS

export function isMischiefName(name: unknown): name is MischiefName {
  return typeof name === 'string' && Object.hasOwn(MISCHIEFS, name)
}

/** The names that a voyage rolls among: the ancestor's four, or all when it is wild. */
export function listMischiefs(wild: boolean): readonly MischiefName[] {
  return wild ? (Object.keys(MISCHIEFS) as MischiefName[]) : CLASSIC
}

export function getMischief(name: MischiefName): Mischief {
  return MISCHIEFS[name]
}

export function makeEndText(mischief: Mischief): string {
  const leftover = mischief.leavesProcess ? ', leaves a process' : ''
  const { end } = mischief
  switch (end.kind) {
    case 'exits':
      return `exits ${end.code}${leftover}`
    case 'dies':
      return `dies by ${end.signal}${leftover}`
    case 'killed':
      return `must be killed by ${end.by}${leftover}`
    default:
      return end satisfies never
  }
}

/** Resolves when the text has left the program, which matters to what blocks, exits or dies right after it. */
export function writeAll(stream: NodeJS.WriteStream, text: string | Uint8Array): Promise<void> {
  return new Promise((resolve, reject) => stream.write(text, (error) => (error ? reject(error) : resolve())))
}

export async function sleep(seconds: number): Promise<void> {
  let leftMs = seconds * 1000
  while (leftMs > LONGEST_TIMER_MS) {
    await waitMs(LONGEST_TIMER_MS)
    leftMs -= LONGEST_TIMER_MS
  }
  await waitMs(leftMs)
}

/** The interval is what keeps the program alive: a pending promise alone does not. */
export function waitForEver(): Promise<never> {
  return new Promise(() => setInterval(() => {}, LONGEST_TIMER_MS))
}

function ignoreSignals(): void {
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) process.on(signal, () => {})
}

/** Helpers inherit the environment, by which a worker recognises them. `ownSession` is setsid(2). */
export async function spawnHelper(command: string, args: string[], stdout: 'inherit' | 'ignore', ownSession: boolean) {
  const { spawn } = await import('node:child_process')
  const helper = spawn(command, args, { stdio: ['ignore', stdout, 'ignore'], detached: ownSession })
  await once(helper, 'spawn')
  return helper
}

async function flood(stream: NodeJS.WriteStream): Promise<never> {
  const block = Buffer.from('What shall we do with the drunken sailor, early in the morning?\n'.repeat(1024))
  for (;;) {
    await writeAll(stream, block)
    // A turn of the event loop for each block: otherwise promises alone would keep it from ever turning.
    await new Promise(setImmediate)
  }
}

const eaten: Buffer[] = []

async function eatMemory(megabytes: number): Promise<void> {
  while (eaten.length < megabytes) {
    eaten.push(Buffer.alloc(MEBIBYTE, 1))
    if (eaten.length % 32 === 0) await new Promise(setImmediate)
  }
}

/** `wx` here and below: run by hand, the sailor must not overwrite what lies in somebody's directory. */
async function writeHugeFile(megabytes: number): Promise<void> {
  const block = Buffer.alloc(MEBIBYTE, 'rum ')
  const file = await open('huge-file.bin', 'wx')
  try {
    for (let written = 0; written < megabytes; written += 1) await file.writeFile(block)
  } finally {
    await file.close()
  }
}

async function forkOften(): Promise<number> {
  const { spawn } = await import('node:child_process')
  const endMs = performance.now() + HELPER_SECONDS * 1000
  let alive = 0
  while (performance.now() < endMs) {
    while (alive < MAX_FORKS_ALIVE) {
      alive += 1
      const child = spawn('sleep', ['0.3'], { stdio: 'ignore' })
      // An `error` comes instead of an `exit`: the machine has no room for one more process.
      child.once('exit', () => {
        alive -= 1
      })
      child.once('error', () => {
        alive -= 1
      })
    }
    await waitMs(10)
  }
  return 0
}

export async function leaveFiles(): Promise<void> {
  const { spawnSync } = await import('node:child_process')
  const plain = { flag: 'wx' }
  await writeFile('report.txt', 'Way hay and up she rises.\n', plain)
  await writeFile('data.csv', 'hour,celsius\n1,11.5\n2,12.25\n', plain)
  await writeFile('.hidden', 'not to be published\n', plain)
  await writeFile('two\nlines.txt', 'a name with a newline\n', plain)
  await writeFile('result.json', '{"result": "not the real result"}\n', plain)
  await symlink('/etc/passwd', 'passwd')
  const fifo = spawnSync('mkfifo', ['fifo'], { encoding: 'utf8' })
  if (fifo.status !== 0) throw new Error(`mkfifo failed: ${fifo.error?.message ?? fifo.stderr.trim()}`)
}
