/** What each command does, and its reply. */

import type { Job } from './job.ts'
import { type Command, isTubeName, type Verb } from './protocol.ts'
import { type About, formatJobStats, formatNames, formatStats, formatTubeStats } from './statistics.ts'
import type { Client } from './tube.ts'
import type { Tubes } from './tubes.ts'

/** What a command asks of the connection, other than to send a reply. */
export type Outcome =
  | string
  /** answered through the tubes' witness, now or later */
  | { do: 'wait' }
  | { do: 'readBody'; bytes: number }
  | { do: 'skip'; bytes: number; reply: string }
  | { do: 'close' }

const BAD_FORMAT = 'BAD_FORMAT\r\n'
const NOT_FOUND = 'NOT_FOUND\r\n'
const WAIT: Outcome = { do: 'wait' }
const CLOSE: Outcome = { do: 'close' }

export type Counters = Record<Verb, number>

export function makeCounters(): Counters {
  return {
    put: 0,
    peek: 0,
    'peek-ready': 0,
    'peek-delayed': 0,
    'peek-buried': 0,
    reserve: 0,
    'reserve-with-timeout': 0,
    'reserve-job': 0,
    delete: 0,
    release: 0,
    use: 0,
    watch: 0,
    ignore: 0,
    bury: 0,
    kick: 0,
    'kick-job': 0,
    touch: 0,
    stats: 0,
    'stats-job': 0,
    'stats-tube': 0,
    'list-tubes': 0,
    'list-tube-used': 0,
    'list-tubes-watched': 0,
    'pause-tube': 0,
    quit: 0,
  }
}

export function formatJob(word: 'RESERVED' | 'FOUND', job: Job): string {
  return `${word} ${job.id} ${job.body.length}\r\n${job.body}\r\n`
}

export interface Scene {
  readonly tubes: Tubes
  readonly counters: Counters
  readonly maxJobBytes: number
  /** the facts for `stats` */
  readonly tell: () => About
}

export function execute(scene: Scene, client: Client, command: Command, now: number): Outcome {
  const { tubes, counters } = scene
  if (command.verb === 'bad') return BAD_FORMAT
  if (command.verb === 'unknown') return 'UNKNOWN_COMMAND\r\n'
  counters[command.verb]++
  switch (command.verb) {
    case 'put':
      return beginPut(tubes, client, command, now, scene.maxJobBytes)
    case 'reserve':
      tubes.reserve(client, undefined, now)
      return WAIT
    case 'reserve-with-timeout':
      tubes.reserve(client, command.seconds, now)
      return WAIT
    case 'reserve-job':
      return jobOr(NOT_FOUND, 'RESERVED', tubes.reserveJob(client, command.id, now))
    case 'delete':
      return tubes.delete(client, command.id) ? 'DELETED\r\n' : NOT_FOUND
    case 'release':
      return tubes.release(client, command.id, command.priority, command.delaySeconds, now) ? 'RELEASED\r\n' : NOT_FOUND
    case 'bury':
      return tubes.bury(client, command.id, command.priority, now) ? 'BURIED\r\n' : NOT_FOUND
    case 'touch':
      return tubes.touch(client, command.id, now) ? 'TOUCHED\r\n' : NOT_FOUND
    case 'kick':
      return `KICKED ${tubes.kick(client, command.count, now)}\r\n`
    case 'kick-job':
      return tubes.kickJob(command.id, now) ? 'KICKED\r\n' : NOT_FOUND
    case 'quit':
      return CLOSE
    case 'use':
    case 'watch':
    case 'ignore':
      return change(tubes, client, command)
    case 'pause-tube':
      return pause(tubes, command, now)
    default:
      return tellOf(scene, client, command, now)
  }
}

type Of<V extends Verb> = Extract<Command, { verb: V }>

function beginPut(tubes: Tubes, client: Client, command: Of<'put'>, now: number, maxJobBytes: number): Outcome {
  const { bytes, priority, delaySeconds, ttrSeconds } = command
  if (bytes > maxJobBytes) return { do: 'skip', bytes: bytes + 2, reply: 'JOB_TOO_BIG\r\n' }
  if (command.hasTail) return BAD_FORMAT
  tubes.beginPut(client, priority, delaySeconds, ttrSeconds, now)
  return { do: 'readBody', bytes }
}

function change(tubes: Tubes, client: Client, command: Of<'use' | 'watch' | 'ignore'>): Outcome {
  switch (command.verb) {
    case 'use':
      tubes.use(client, command.tube)
      return `USING ${command.tube}\r\n`
    case 'watch':
      return `WATCHING ${tubes.watch(client, command.tube)}\r\n`
    case 'ignore': {
      const count = tubes.ignore(client, command.tube)
      return count === undefined ? 'NOT_IGNORED\r\n' : `WATCHING ${count}\r\n`
    }
  }
}

function pause(tubes: Tubes, command: Of<'pause-tube'>, now: number): Outcome {
  if (!isTubeName(command.tube)) return BAD_FORMAT
  const tube = tubes.findTube(command.tube)
  if (tube === undefined) return NOT_FOUND
  tubes.pause(tube, command.seconds, now)
  return 'PAUSED\r\n'
}

type Question =
  | 'peek'
  | 'peek-ready'
  | 'peek-delayed'
  | 'peek-buried'
  | 'stats'
  | 'stats-job'
  | 'stats-tube'
  | 'list-tubes'
  | 'list-tube-used'
  | 'list-tubes-watched'

function tellOf({ tubes, tell }: Scene, client: Client, command: Of<Question>, now: number): Outcome {
  switch (command.verb) {
    case 'peek':
      return jobOr(NOT_FOUND, 'FOUND', tubes.findJob(command.id))
    case 'peek-ready':
      return jobOr(NOT_FOUND, 'FOUND', client.used.ready.peek())
    case 'peek-delayed':
      return jobOr(NOT_FOUND, 'FOUND', client.used.delayed.peek())
    case 'peek-buried':
      return jobOr(NOT_FOUND, 'FOUND', client.used.buried.first)
    case 'stats':
      return ok(formatStats(tubes, tell(), now))
    case 'stats-job': {
      const job = tubes.findJob(command.id)
      return job === undefined ? NOT_FOUND : ok(formatJobStats(job, now))
    }
    case 'stats-tube': {
      const tube = tubes.findTube(command.tube)
      return tube === undefined ? NOT_FOUND : ok(formatTubeStats(tube, now))
    }
    case 'list-tubes':
      return ok(formatNames(tubes.list))
    case 'list-tubes-watched':
      return ok(formatNames(client.watched))
    case 'list-tube-used':
      return `USING ${client.used.name}\r\n`
    default:
      throw new Error(`no command ${(command satisfies never as Command).verb}`)
  }
}

function jobOr(reply: string, word: 'RESERVED' | 'FOUND', job: Job | undefined): string {
  return job === undefined ? reply : formatJob(word, job)
}

function ok(body: string): string {
  return `OK ${body.length}\r\n${body}\r\n`
}
