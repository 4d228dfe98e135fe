/** What the workers say in their logs, read while they write. */

import { closeSync, openSync, readSync } from 'node:fs'
import type { Finding } from './verdict.ts'

const CHUNK_BYTES = 256 * 1024
const KEPT_LINES = 20
const MAX_LINE = 2_000

interface LogFile {
  readonly worker: string
  readonly path: string
  offset: number
  partial: string
}

interface LogEvent {
  readonly event?: string
  readonly uuid?: string
  readonly attempt?: number
  readonly survivors?: readonly number[]
}

export interface Logbook {
  /** Reads what is new in the logs of these workers. */
  read(workers: Iterable<{ name: string; log: string }>): void
  /** the last lines that tell of a job, oldest first, from all workers */
  linesOf(uuid: string): readonly string[]
  /** jobs of which more than one attempt was published */
  publishedTwice(): Finding[]
  /** processes that a worker itself says it could not end */
  survivors(): Finding[]
  eventCount(event: string): number
}

export function makeLogbook(): Logbook {
  const files = new Map<string, LogFile>()
  const lines = new Map<string, string[]>()
  const published = new Map<string, Set<string>>()
  const survivors: Finding[] = []
  const counts = new Map<string, number>()
  const note = (worker: string, line: string) => {
    const event = parse(line)
    if (event === undefined) return
    const { uuid, attempt } = event
    counts.set(event.event ?? '', (counts.get(event.event ?? '') ?? 0) + 1)
    if (uuid === undefined) return
    keepLine(lines, uuid, `${worker} ${line.slice(0, MAX_LINE)}`)
    if (event.event === 'job_published') {
      published.set(uuid, (published.get(uuid) ?? new Set()).add(`attempt ${attempt} by ${worker}`))
    }
    if (event.survivors !== undefined && event.survivors.length > 0) {
      const detail = `${worker} says that processes ${event.survivors.join(' ')} of attempt ${attempt} survived`
      survivors.push({ id: uuid, detail })
    }
  }
  return {
    read: (workers) => {
      for (const { name, log } of workers) {
        const file = files.get(name) ?? { worker: name, path: log, offset: 0, partial: '' }
        files.set(name, file)
        for (const line of readNew(file)) note(name, line)
      }
    },
    linesOf: (uuid) => [...(lines.get(uuid) ?? [])].sort((a, b) => timeOf(a).localeCompare(timeOf(b))),
    publishedTwice: () =>
      [...published]
        .filter(([, attempts]) => attempts.size > 1)
        .map(([id, attempts]) => ({ id, detail: `published as ${[...attempts].join(', and as ')}` })),
    survivors: () => survivors,
    eventCount: (event) => counts.get(event) ?? 0,
  }
}

/** Logs are read one after the other; what happened is told in its order. */
function timeOf(line: string): string {
  return /"time":"([^"]*)"/.exec(line)?.[1] ?? ''
}

function keepLine(lines: Map<string, string[]>, uuid: string, line: string): void {
  const kept = lines.get(uuid) ?? []
  kept.push(line)
  if (kept.length > KEPT_LINES) kept.shift()
  lines.set(uuid, kept)
}

/** What is no JSON is not for us: a warning of Node, a line cut by a kill. */
function parse(line: string): LogEvent | undefined {
  if (!line.startsWith('{')) return undefined
  try {
    return JSON.parse(line) as LogEvent
  } catch {
    return undefined
  }
}

function readNew(file: LogFile): string[] {
  let fd: number
  try {
    fd = openSync(file.path, 'r')
  } catch {
    return []
  }
  try {
    const buffer = Buffer.alloc(CHUNK_BYTES)
    const lines: string[] = []
    for (let bytes = readSync(fd, buffer, 0, CHUNK_BYTES, file.offset); bytes > 0; ) {
      file.offset += bytes
      const parts = (file.partial + buffer.toString('utf8', 0, bytes)).split('\n')
      file.partial = parts.pop() ?? ''
      lines.push(...parts)
      bytes = readSync(fd, buffer, 0, CHUNK_BYTES, file.offset)
    }
    return lines
  } finally {
    closeSync(fd)
  }
}
