import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import type { Algorithm } from '../../src/run/algorithm.ts'
import { findLeftovers, type Ground, makeRequest, openGround, PROJECT, type RunOptions } from './ground.ts'
import { byShell } from './warm.ts'

/** Runs in a process that may open 400 files. That it ends by itself shows that no timer of ours holds it. */
async function runExhausted(
  ground: Ground,
  orders: { spare: number; seconds?: number; launched: boolean },
  options: RunOptions,
) {
  const { launcher: _, ...request } = await makeRequest(ground, options)
  const program = join(PROJECT, 'test/run/exhausted.js')
  const node = [process.execPath, program, JSON.stringify({ ...orders, request })]
  const child = spawn('/bin/sh', ['-c', 'ulimit -n 400; exec "$@"', 'sh', ...node], {
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let said = ''
  for (const stream of [child.stdout, child.stderr]) {
    stream.on('data', (data) => {
      said += data
    })
  }
  const [code] = await once(child, 'close')
  expect(code, said).toBe(0)
  return JSON.parse(said)
}

const WAYS = [
  ['a launcher', true],
  ['Node', false],
] as const

const STEPS: readonly [string, boolean, Partial<Algorithm>][] = [
  ['a run that a launcher starts', true, { command: ['/bin/echo', '1'] }],
  ['a run that Node starts', false, { command: ['/bin/echo', '1'] }],
  ['a warm process', false, { ...byShell('answer 1'), warm: { maxJobs: 9 } }],
]

test.each(STEPS)(
  'where descriptors run out, at whatever step of %s, the worker is at fault, not the job; none is kept',
  async (_, launched, manifest) => {
    const spares = [0, 1, 2, 3, 4, 5, 6, 8, 10, 30]
    const reports = await Promise.all(
      spares.map((spare) => runExhausted(openGround(), { spare, launched }, { manifest })),
    )
    for (const [i, report] of reports.entries()) {
      const { outcome, code, before, after } = report
      const kind = outcome?.kind ?? code
      expect(['EMFILE', 'worker_fault', 'success'], `${spares[i]} spare: ${JSON.stringify(report)}`).toContain(kind)
      expect(after, `${spares[i]} spare`).toBe(before)
    }
    expect(reports[0].code ?? reports[0].outcome.kind).toMatch(/^(EMFILE|worker_fault)$/)
    expect(reports.at(-1).outcome.kind).toBe('success')
  },
  60_000,
)

test.each(WAYS)(
  'a run is ended although no descriptor is left to look for it: started by %s',
  async (_, launched) => {
    const ground = openGround()
    // The program that is run beforehand ends at once: it finds a file that says so.
    const script = '[ -e ../../second ] || { touch ../../second; exit 0; }; trap "" TERM; sleep $NAP & sleep $NAP; wait'
    const report = await runExhausted(
      ground,
      { spare: 12, seconds: 0.3, launched },
      { manifest: { command: ['/bin/sh', '-c', script] } },
    )
    expect(report).toMatchObject({ outcome: { kind: 'interrupted' }, kill: { survivors: [] } })
    expect(report.kill.signals.map(({ signal }: { signal: string }) => signal)).toEqual(['SIGTERM', 'SIGKILL'])
    expect(report.after).toBe(report.before)
    expect(findLeftovers(ground)).toEqual([])
  },
  60_000,
)
