import { spawnSync } from 'node:child_process'
import { cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { PROJECT } from '../support/installation.ts'

const PROGRAMS = ['qworker', 'qproducer', 'drunken-sailor']
const env = { PATH: process.env.PATH ?? '' }

/** A checkout in which nothing was built. */
function checkout(): string {
  const dir = mkdtempSync(join(tmpdir(), 'qworker-bin-'))
  onTestFinished(() => rmSync(dir, { recursive: true }))
  cpSync(join(PROJECT, 'bin'), join(dir, 'bin'), { recursive: true })
  writeFileSync(join(dir, 'package.json'), '{"type": "module"}')
  return dir
}

test.each(PROGRAMS)('%s that is not built says so in a line', (program) => {
  const { status, stderr } = spawnSync(join(checkout(), 'bin', program), ['--version'], { env, encoding: 'utf8' })
  expect(stderr).toBe(`${program}: it is not built, or not whole: run npm ci, or npm run build\n`)
  expect(status).toBe(70)
})

test('a program that lacks a package says so in a line', () => {
  const dir = checkout()
  cpSync(join(PROJECT, 'dist'), join(dir, 'dist'), { recursive: true })
  for (const program of ['qworker', 'qproducer']) {
    const { status, stderr } = spawnSync(join(dir, 'bin', program), ['--help'], { env, encoding: 'utf8' })
    expect(stderr).toBe(`${program}: it is not built, or not whole: run npm ci, or npm run build\n`)
    expect(status).toBe(70)
  }
})

test('a program that may open too few files to be loaded says so in a line', () => {
  const program = 'qworker'
  const run = (limit: number, command: string) =>
    spawnSync('/bin/sh', ['-c', `ulimit -n ${limit}; exec ${command}`], { env, encoding: 'utf8' })
  // With so many Node itself starts, and has hardly one to spare.
  let limit = 8
  while (run(limit, `${process.execPath} -e 0`).status !== 0) limit++
  const { status, stderr } = run(limit + 1, join(PROJECT, 'bin', program))
  expect(stderr).toBe(`${program}: too few files may be open: raise ulimit -n to 1024\n`)
  expect(status).toBe(70)
})

test('a fault while a program is loaded keeps its stack', () => {
  const dir = checkout()
  mkdirSync(join(dir, 'dist', 'cli'), { recursive: true })
  writeFileSync(join(dir, 'dist', 'cli', 'qworker.js'), 'throw new Error("broken here")\n')
  const { status, stderr } = spawnSync(join(dir, 'bin', 'qworker'), [], { env, encoding: 'utf8' })
  expect(stderr).toMatch(/^qworker: Error: broken here\n {4}at file:.*dist\/cli\/qworker\.js:1:7/)
  expect(status).toBe(70)
})
