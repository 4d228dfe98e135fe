/** The sailor as a warm algorithm: a job for each line of stdin, and what can go wrong with that alone. */

import { closeSync } from 'node:fs'
import { setTimeout as waitMs } from 'node:timers/promises'
import { rollDice } from './dice.ts'
import { enterJournal, leaveJournal } from './journal.ts'
import { HELPER_SECONDS, leaveFiles, sleep, spawnHelper, waitForEver, writeAll } from './mischief.ts'
import { isSeconds, isSeed } from './voyage.ts'

/** What the worker tells of a job, as far as a sailor cares. */
type Job = {
  uuid: string
  attempt: number
  deadline: string
  workdir: string
  payload: unknown
}

/** A job in the hands of a sailor. */
type Watch = {
  job: Job
  sleepSeconds: number
  /** Writes an answer; a result, unless told otherwise. */
  answer: (fields?: object) => Promise<void>
}

type WarmMischief = {
  description: string
  /** what becomes of the process */
  end: 'lives on' | 'is ended' | 'ends'
  /** Resolves to the exit code, if the program is to end. */
  run: (watch: Watch) => Promise<unknown>
}

const FOREIGN_UUID = '0'.repeat(32)
/** The worker waits a second between its two signals: an answer comes within it. */
const LATE_MS = 500
const FLOOD_BYTES = 64 * 1024

/** The order counts: a seed rolls a place in this table, so a new mischief changes the seeds. */
const WARM_MISCHIEFS = {
  normal: {
    description: 'sleeps SECONDS, then answers',
    end: 'lives on',
    run: async ({ sleepSeconds, answer }) => {
      await sleep(sleepSeconds)
      await answer()
    },
  },
  faulty: {
    description: 'answers with an error',
    end: 'lives on',
    run: ({ answer }) => answer({ error: 'Drunken Sailor: Faulty execution.' }),
  },
  'bad-input': {
    description: 'answers that its input is bad, and that no retry will help',
    end: 'lives on',
    run: ({ answer }) => answer({ error: 'the input is bad', retry: false }),
  },
  talkative: {
    description: 'writes a line to stderr, then answers',
    end: 'lives on',
    run: async ({ job, answer }) => {
      await writeAll(process.stderr, `What shall we do with ${job.uuid}?\n`)
      await answer()
    },
  },
  'leaves-files': {
    description: 'leaves outputs and other things in the directory of the job, then answers',
    end: 'lives on',
    run: async ({ job, answer }) => {
      process.chdir(job.workdir)
      await leaveFiles()
      await answer()
    },
  },
  'leaves-child': {
    description: 'leaves a sleeping child in a session of its own, then answers',
    end: 'lives on',
    run: async ({ answer }) => {
      await spawnHelper('sleep', [String(HELPER_SECONDS)], 'ignore', true)
      await answer()
    },
  },
  'answers-twice': {
    description: 'answers, and answers again',
    end: 'is ended',
    run: async ({ answer }) => {
      await answer()
      await answer()
    },
  },
  'answers-late': {
    description: 'ignores SIGTERM, and answers half a second after its time',
    end: 'is ended',
    run: async ({ job, answer }) => {
      process.on('SIGTERM', () => {})
      await waitMs(Math.max(0, Date.parse(job.deadline) - Date.now()) + LATE_MS)
      await answer()
    },
  },
  'answers-for-another': {
    description: 'answers for a job that it was not given',
    end: 'is ended',
    run: ({ answer }) => answer({ uuid: FOREIGN_UUID, result: 'of another' }),
  },
  'dies-between-jobs': {
    description: 'answers, then exits with 10',
    end: 'ends',
    run: async ({ answer }) => {
      await answer()
      return 10
    },
  },
  'dies-in-the-middle': {
    description: 'exits with 10, and answers nothing',
    end: 'ends',
    run: async () => 10,
  },
  'stops-reading': {
    description: 'answers nothing, and reads nothing any more',
    end: 'is ended',
    run: async () => {
      process.stdin.pause()
      await waitForEver()
    },
  },
  'closes-stdin': {
    description: 'answers, then closes stdin and waits for ever',
    end: 'is ended',
    run: async ({ answer }) => {
      await answer()
      closeSync(0)
      await waitForEver()
    },
  },
  'half-line': {
    description: 'writes half an answer, and waits for ever',
    end: 'is ended',
    run: async ({ job }) => {
      await writeAll(process.stdout, `{"uuid": "${job.uuid}", "result": {"celsius": 11.`)
      await waitForEver()
    },
  },
  'not-json': {
    description: 'answers in words',
    end: 'is ended',
    run: () => writeAll(process.stdout, 'Way hay and up she rises.\n'),
  },
  'floods-stdout': {
    description: 'writes a line without an end',
    end: 'is ended',
    run: async () => {
      const block = 'x'.repeat(FLOOD_BYTES)
      for (;;) {
        await writeAll(process.stdout, block)
        await new Promise(setImmediate)
      }
    },
  },
} satisfies Record<string, WarmMischief>

export type WarmMischiefName = keyof typeof WARM_MISCHIEFS

export function listWarmMischiefs(): readonly WarmMischiefName[] {
  return Object.keys(WARM_MISCHIEFS) as WarmMischiefName[]
}

export function getWarmMischief(name: WarmMischiefName): WarmMischief {
  return WARM_MISCHIEFS[name]
}

function isWarmMischief(name: unknown): name is WarmMischiefName {
  return typeof name === 'string' && Object.hasOwn(WARM_MISCHIEFS, name)
}

/**
 * Serves jobs until stdin ends. The payload may hold `outcome`, `seed` and `sleep`; by default all goes well.
 * @param journal where the sailors of a torture note themselves
 * @returns the exit code
 */
export async function serveJobs(sleepSeconds: number, journal: string | undefined): Promise<number> {
  let rest = ''
  process.stdin.setEncoding('utf8')
  for await (const chunk of process.stdin) {
    const lines = `${rest}${chunk}`.split('\n')
    rest = lines.pop() ?? ''
    for (const line of lines) {
      const exitCode = await serveJob(JSON.parse(line) as Job, sleepSeconds, journal)
      if (typeof exitCode === 'number') return exitCode
    }
  }
  return 0
}

async function serveJob(job: Job, sleepSeconds: number, journal: string | undefined): Promise<unknown> {
  const attempt = String(job.attempt)
  if (journal !== undefined) enterJournal(journal, job.uuid, attempt)
  let isEntered = journal !== undefined
  const answer = (fields: object = { result: { pid: process.pid, attempt: job.attempt } }) => {
    if (isEntered) leaveJournal(journal as string, job.uuid, attempt)
    isEntered = false
    return writeAll(process.stdout, `${JSON.stringify({ uuid: job.uuid, ...fields })}\n`)
  }
  const payload = (job.payload ?? {}) as { outcome?: unknown; seed?: unknown; sleep?: unknown }
  const { outcome, seed, sleep: asked } = payload
  if (outcome !== undefined && !isWarmMischief(outcome))
    return answer({ error: `"outcome" must be one of ${listWarmMischiefs().join(', ')}`, retry: false })
  const names = listWarmMischiefs()
  const rolled = isSeed(seed) ? (names[rollDice(seed, job.attempt, names.length)] as WarmMischiefName) : 'normal'
  const { run } = getWarmMischief(outcome ?? rolled)
  return run({ job, sleepSeconds: isSeconds(asked) ? asked : sleepSeconds, answer })
}
