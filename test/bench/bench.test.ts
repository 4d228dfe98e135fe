/** The benchmark's instrument, not what it measures: no number is judged here. */

import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { beforeEach, expect, onTestFinished, test } from 'vitest'
import { PROJECT, until } from '../support/installation.ts'

const BENCH = join(PROJECT, 'test', 'bench', 'bench.js')

interface Numbers {
  readonly format: number
  readonly faults: readonly string[]
  readonly machine: Readonly<Record<string, unknown>>
  readonly rows: readonly {
    readonly row: string
    readonly entries: readonly { readonly name: string; readonly median: number; readonly values: readonly number[] }[]
  }[]
  readonly checks: readonly { readonly ok: boolean }[]
}

let dir: string
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'qworker-bench-test-'))
  onTestFinished(() => rmSync(dir, { recursive: true, force: true }))
})

function bench(...args: string[]) {
  const env = { ...process.env, TMPDIR: dir }
  return spawnSync(process.execPath, [BENCH, ...args], { env, encoding: 'utf8', timeout: 60_000 })
}

test('the benchmark explains itself, and refuses a row that it does not have', () => {
  expect(bench('--help')).toMatchObject({ status: 0, stdout: expect.stringContaining('--rows') })
  expect(bench('--rows', 'jbos')).toMatchObject({ status: 64, stderr: expect.stringContaining('jobs') })
})

test('a round is written to the JSON file, shown as a table, and nothing else is left', () => {
  const file = join(dir, 'numbers.json')
  const { status, stdout, stderr } = bench('--rows', 'start', '--quick', '--rounds', '1', '--json', file)
  expect({ status, stderr: stderr.replaceAll(/\d/g, '') }).toEqual({
    status: 0,
    stderr: 'start ... . s\n',
  })
  const numbers = JSON.parse(readFileSync(file, 'utf8')) as Numbers
  expect(numbers).toMatchObject({ format: 1, faults: [], machine: { node: process.version } })
  expect(numbers.rows.map(({ row }) => row)).toEqual(['start'])
  for (const { entries } of numbers.rows) {
    expect(entries.length).toBeGreaterThan(1)
    for (const { name, median, values } of entries) {
      expect(stdout).toContain(name)
      expect(median).toBeGreaterThan(0)
      expect(values.length).toBeGreaterThan(0)
    }
  }
  expect(numbers.checks.map(({ ok }) => ok)).toEqual([true])
  expect(readdirSync(dir)).toEqual(['numbers.json'])
})

test('a benchmark that is stopped leaves neither a process nor a folder', async () => {
  const args = [BENCH, '--rows', 'memory', '--json', join(dir, 'numbers.json')]
  const child = spawn(process.execPath, args, { env: { ...process.env, TMPDIR: dir }, stdio: 'ignore' })
  const ended = once(child, 'exit')
  await until('its worker publishes', () => ours().length > 0 && hasResult())
  child.kill('SIGTERM')
  expect(await ended).toEqual([143, null])
  expect(ours()).toEqual([])
  expect(readdirSync(dir)).toEqual([])
})

const hasResult = () =>
  readdirSync(dir, { recursive: true, encoding: 'utf8' }).some((path) => path.endsWith('result.json'))

/** Processes that have this test's folder in their environment: workers, and what they run. */
function ours(): string[] {
  return readdirSync('/proc').filter((pid) => {
    try {
      return /^\d+$/.test(pid) && readFileSync(`/proc/${pid}/environ`, 'latin1').includes(`RESULT_BASEDIR=${dir}`)
    } catch {
      return false
    }
  })
}
