import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import type { TortureReport } from '../../src/sailor/torture/torture.ts'
import { PROJECT } from '../support/installation.ts'

test('half a minute of torture: what the broker accepted is complete or buried with a reason, once, and nothing is left', async () => {
  const seed = Math.floor(Math.random() * 2 ** 31)
  console.log(`seed ${seed}`)
  const args = ['torture', '--private', '--minutes', '0.5', '--seed', String(seed), '--json']
  const program = spawn(join(PROJECT, 'bin', 'drunken-sailor'), args, { stdio: ['ignore', 'pipe', 'inherit'] })
  let said = ''
  program.stdout.on('data', (chunk) => {
    said += chunk
  })
  const [code] = await once(program, 'close')
  const report = JSON.parse(said) as TortureReport
  const { verdict } = report
  expect(verdict.accepted).toBeGreaterThan(50)
  expect(verdict.complete).toBeGreaterThan(0)
  expect(verdict.buried).toBeGreaterThan(0)
  expect(Object.keys(report.faults).length).toBeGreaterThan(10)
  expect(code).toBe(verdict.clean ? 0 : 1)
  expect(verdict.clean, JSON.stringify({ bad: verdict.bad, logs: report.logs }, null, 1)).toBe(true)
}, 240_000)
