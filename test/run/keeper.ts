import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Algorithm } from '../../src/run/algorithm.ts'
import { readProcess } from '../../src/run/look.ts'
import type { RunReport } from '../../src/run/run.ts'
import { findSleepers, type Ground, makeAlgorithm, makeRequest, PATH, PROJECT, until } from './ground.ts'

const SILENT = '>/dev/null 2>&1 </dev/null'
/** Each process starts the next and exits, in sessions of their own, until the ground is cleared. */
const HOP = 'trap "" TERM; [ -e "$STOP" ] || setsid sh -c "$HOP" &'

/** Scripts of runs that do not want to end, each with the number of its sleepers. */
const NASTY: readonly [script: string, sleepers: number][] = [
  ['echo "what it said" >&2; sleep $NAP & wait', 1],
  ['setsid sleep $NAP & wait', 1],
  [`cd /; setsid sh -c "sleep $NAP ${SILENT} &"; exec sleep $NAP ${SILENT}`, 2],
  ['trap "" HUP INT TERM; sleep $NAP & wait', 1],
  [`HOP='${HOP}'; export HOP; sh -c "$HOP"; exec sleep $NAP`, 1],
  // Its leader dies with the worker, its environment is gone, it works elsewhere: only the session tells, of which another bears the mark.
  [
    `cd /; sleep $NAP ${SILENT} & env -i sleep $NAP ${SILENT} & while kill -0 $PPID; do sleep 0.01; done; kill -9 $$`,
    2,
  ],
]

/** A worker process, that its test kills. */
export interface Keeper {
  readonly child: ChildProcess
  readonly path: string
  readonly problems: string[]
  /** of its runs, in the order of the requests; those that ended */
  readonly reports: RunReport[]
  /** what it found of its control group */
  readonly cgroup: { path?: string; controllers?: string[]; why?: string } | undefined
  guard(): number | undefined
}

export interface KeeperOptions {
  readonly guarded: boolean
  readonly nasty: boolean
  /** the control group in which it is started; it divides it */
  readonly within?: string
  /** runs in place of the nasty ones */
  readonly sleepers?: number
  readonly runs?: readonly { script: string; manifest?: Partial<Algorithm>; limitSeconds?: number }[]
}

const WITHIN = 'echo 0 >"$1/cgroup.procs" && shift && exec "$@"'

export const GUARD = join(PROJECT, 'dist/cli/guard.js')
export const NASTY_SLEEPERS = NASTY.reduce((sum, [, sleepers]) => sum + sleepers, 0)
export const NASTY_RUNS = NASTY.length

/** Starts a worker with runs that do not want to end, or without any. */
export async function startKeeper(ground: Ground, options: KeeperOptions): Promise<Keeper> {
  const { workdir: _, signal: __, launcher: ___, ...request } = await makeRequest(ground)
  const environment = { PATH, NAP: ground.nap, STOP: join(ground.dir, 'stop') }
  const runs = options.runs ?? (options.nasty ? NASTY : []).map(([script]) => ({ script }))
  const requests = runs.map(({ script, manifest, limitSeconds = 60 }: NonNullable<KeeperOptions['runs']>[number]) => ({
    ...request,
    environment,
    limitSeconds,
    algorithm: makeAlgorithm(ground.dir, { command: ['/bin/sh', '-c', script], ...manifest }),
  }))
  const orders = join(ground.dir, `orders-${process.hrtime.bigint()}.json`)
  const program = options.guarded ? GUARD : undefined
  writeFileSync(
    orders,
    JSON.stringify({ workBase: workBaseOf(ground), program, requests, divides: options.within !== undefined }),
  )
  const command = [process.execPath, join(PROJECT, 'test/run/keeper.js'), orders]
  const [file = '', ...args] =
    options.within === undefined ? command : ['/bin/sh', '-c', WITHIN, 'sh', options.within, ...command]
  const child = spawn(file, args, { stdio: ['pipe', 'pipe', 'inherit'] })
  const problems: string[] = []
  const reports: RunReport[] = []
  let last: { path?: string; guard?: number; cgroup?: Keeper['cgroup'] } = {}
  let partial = ''
  child.stdout.on('data', (chunk) => {
    const lines = (partial + chunk).split('\n')
    partial = lines.pop() ?? ''
    for (const line of lines.map((text) => JSON.parse(text))) {
      if (line.problem !== undefined) problems.push(line.problem)
      else if (line.report !== undefined) reports[line.report.number] = line.report
      else last = line
    }
  })
  const sleepers = options.sleepers ?? (options.nasty ? NASTY_SLEEPERS : 0)
  await until(
    'the worker and its runs',
    () =>
      last.path !== undefined &&
      ((options.runs !== undefined && options.sleepers === undefined) || findSleepers(ground).length === sleepers),
  )
  return { child, path: last.path as string, problems, reports, cgroup: last.cgroup, guard: () => last.guard }
}

export function workBaseOf(ground: Ground): string {
  return join(ground.dir, '.work')
}

export async function end(child: ChildProcess, signal: NodeJS.Signals): Promise<void> {
  const exited = once(child, 'exit')
  child.kill(signal)
  await exited
}

export function isAlive(pid: number): boolean {
  return !['Z', 'X', undefined].includes(readProcess(pid)?.state)
}
