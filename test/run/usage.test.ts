import { expect, test } from 'vitest'
import { makeAttemptRecord } from '../../src/publish.ts'
import { openGround, runScript } from './ground.ts'

const NODE = `'${process.execPath}' -e`
const spin = (seconds: number) =>
  `const e = process.cpuUsage(); for (;;) { const u = process.cpuUsage(e); if (u.user + u.system > ${seconds}e6) break }`

test('processor time and memory of an attempt stand in its record', async () => {
  const report = await runScript(openGround(), `exec ${NODE} 'const b = Buffer.alloc(2e8, 1); ${spin(2)}; b.at(0)'`)
  const { usage } = makeAttemptRecord(1, 'w', report)
  expect(usage?.method).toBe('sampled')
  expect(usage?.cpu_seconds).toBeGreaterThan(0.9)
  expect(usage?.cpu_seconds).toBeLessThan(3.5)
  expect(usage?.peak_memory_bytes).toBeGreaterThan(2e8)
  expect(usage?.peak_memory_bytes).toBeLessThan(6e8)
  expect(usage?.wall_seconds).toBeGreaterThan(1.9)
  expect(usage?.wall_seconds).toBeLessThanOrEqual(report.durationSeconds)
})

test('the whole tree counts: a child that ended, one beside a sleeper, one that lost its parent', async () => {
  const child = (seconds: number, rest = '') => `${NODE} '${spin(seconds)} ${rest}'`
  // The parent of the last stays for some samples; what is never seen in the tree is not counted.
  const orphan = child(2, ';require("fs").writeFileSync(".done", "")')
  const script = `${child(1)}; ${child(1)} & (${orphan} & sleep 2); until [ -e .done ]; do sleep 0.1; done; wait`
  const report = await runScript(openGround(), script)
  expect(report.outcome.kind).toBe('success')
  expect(report.usage?.cpu_seconds).toBeGreaterThan(2.6)
  expect(report.usage?.cpu_seconds).toBeLessThan(6.5)
})

test('memory is summed over the tree', async () => {
  const hold = `${NODE} 'const b = Buffer.alloc(1e8, 1); setTimeout(() => b.at(0), 2500)'`
  const report = await runScript(openGround(), `${hold} & ${hold} & wait`)
  expect(report.usage?.peak_memory_bytes).toBeGreaterThan(2e8)
})

test('a run that was over before the first look has no numbers; one that never began has no usage', async () => {
  const usages = []
  for (let i = 0; i < 10; i++) usages.push((await runScript(openGround(), 'exit 0')).usage)
  expect(usages).toContainEqual(expect.objectContaining({ cpu_seconds: null, peak_memory_bytes: null }))
  expect((await runScript(openGround(), '', { manifest: { command: ['./gone'] } })).usage).toBeUndefined()
})

test('a run that we ended is looked at right before', async () => {
  const report = await runScript(openGround(), 'while :; do :; done', { limitSeconds: 1.5 })
  expect(report).toMatchObject({ outcome: { kind: 'timed_out' } })
  expect(report.usage?.cpu_seconds).toBeGreaterThan(0)
})
