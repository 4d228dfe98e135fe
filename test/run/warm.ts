import { randomBytes } from 'node:crypto'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach } from 'vitest'
import type { Algorithm } from '../../src/run/algorithm.ts'
import type { RunReport } from '../../src/run/run.ts'
import { runWarm, type WarmRequest } from '../../src/run/warm.ts'
import { openWarmSeats, type WarmSeats, type WarmWorkdir } from '../../src/run/warm-seat.ts'
import { FIRST_ATTEMPT, type Ground, makeAlgorithm, PATH, PROJECT } from './ground.ts'

export interface WarmSlot {
  readonly seats: WarmSeats
  readonly workshop: string
  /** Runs one job to its report; `look` sees what is to be published before it is gone. */
  run(
    payload?: unknown,
    options?: Partial<Omit<WarmRequest, 'workdir'>> & { settings?: Record<string, unknown>; look?: Look },
  ): Promise<RunReport & { logs: string[] }>
}

const open: WarmSeats[] = []

// Before that of ground.ts, which looks for what is left.
afterEach(async () => {
  await Promise.all(open.splice(0).map((seats) => seats.close()))
})

type Look = (report: RunReport, workdir: WarmWorkdir) => void

/** A slot with one algorithm, which is closed when the test is over. */
export function openWarm(ground: Ground, manifest: Partial<Algorithm> = {}): WarmSlot {
  const workshop = join(ground.dir, 'work')
  mkdirSync(workshop, { recursive: true })
  const usual = makeWarm(ground, manifest)
  const seats = openWarmSeats({ workshop, workerId: `w1-${ground.uuid}`, slot: 1 })
  open.push(seats)
  return {
    seats,
    workshop,
    async run(payload = {}, { algorithm = usual, settings, look, ...rest } = {}) {
      const workdir = seats.openWorkdir(algorithm, settings)
      try {
        const report = await runWarm({
          algorithm,
          workdir,
          workerId: `w1-${ground.uuid}`,
          uuid: newUuid(),
          type: algorithm.name,
          ...FIRST_ATTEMPT,
          environment: { PATH, LANG: 'C.UTF-8', NAP: ground.nap },
          maxOutputBytes: 1_000_000,
          maxScratchBytes: 100_000_000,
          signal: new AbortController().signal,
          payloadJson: JSON.stringify(payload),
          ...rest,
        })
        look?.(report, workdir)
        return { ...report, logs: workdir.logs.map(([name]) => name) }
      } finally {
        await workdir.close()
      }
    },
  }
}

export function newUuid(): string {
  return randomBytes(16).toString('hex')
}

export function makeWarm(ground: Ground, manifest: Partial<Algorithm>): Algorithm {
  return makeAlgorithm(ground.dir, { warm: { maxJobs: 1000 }, ...manifest })
}

/** Serves by a shell script: `$line` is the line, `$uuid` the job's, `answer TEXT` gives a result. */
export function byShell(body: string): Partial<Algorithm> {
  const script = `answer() { printf '{"uuid":"%s","result":%s}\\n' "$uuid" "$1"; }
while read -r line; do uuid=\${line#*'"uuid":"'}; uuid=\${uuid%%'"'*}; dir=\${line#*'"workdir":"'}; dir=\${dir%%'"'*}
${body}
done`
  return { command: ['/bin/sh', '-c', script] }
}

export const SAILOR: Partial<Algorithm> = {
  command: ['{node}', join(PROJECT, 'bin/drunken-sailor'), '--warm', '-s', '0'],
}
