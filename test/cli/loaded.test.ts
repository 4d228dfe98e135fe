import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { startBroker } from '../support/broker.ts'
import { PROJECT } from '../support/installation.ts'

/** Packages, and files of `dist/`, that a program loads from its start to its end. */
async function listLoaded(
  program: string,
  args: readonly string[],
  env: Record<string, string> = {},
): Promise<string[]> {
  const dir = mkdtempSync(join(tmpdir(), 'qworker-loaded-'))
  onTestFinished(() => rmSync(dir, { recursive: true }))
  const list = join(dir, 'list')
  writeFileSync(list, '')
  const tracer = join(PROJECT, 'test', 'cli', 'loaded.js')
  const child = spawn(process.execPath, ['--import', tracer, join(PROJECT, 'bin', program), ...args], {
    env: { PATH: process.env.PATH ?? '', LOADED: list, ...env },
    stdio: ['ignore', 'ignore', 'inherit'],
  })
  const [code] = await once(child, 'close')
  expect(code).toBe(0)
  const found = readFileSync(list, 'utf8').matchAll(/\/(?:node_modules\/((?:@[^/]+\/)?[^/]+)|dist)\/(.*)$/gm)
  return [...new Set([...found].map(([, name, file = '']) => name ?? file))].sort()
}

test('qproducer loads for one job no package at all', async () => {
  const broker = await startBroker()
  onTestFinished(() => broker.stop())
  const env = { BEANSTALK_SERVER: broker.host, BEANSTALK_PORT: String(broker.port), TTR: '90s' }
  const loaded = await listLoaded('qproducer', ['-a', 'sleep', '-p', '{}', '--tube', 'loaded', '--json'], env)
  expect(loaded).toContain('cli/qproducer.js')
  expect(loaded.filter((name) => !name.endsWith('.js'))).toEqual([])
  const files = loaded.filter((name) => /^(run|report|store|worker|http|tracker|broker)\//.test(name))
  expect(files).toEqual(['report/suggestion.js', 'run/small-file.js', 'run/yaml.js'])
}, 60_000)

test('qproducer loads a YAML parser for an rc file', async () => {
  const broker = await startBroker()
  const dir = mkdtempSync(join(tmpdir(), 'qworker-rc-'))
  onTestFinished(async () => {
    await broker.stop()
    rmSync(dir, { recursive: true })
  })
  const rc = join(dir, 'rc')
  writeFileSync(rc, `BEANSTALK_SERVER: ${broker.host}\nBEANSTALK_PORT: ${broker.port}\nTUBE: loaded\n`)
  const loaded = await listLoaded('qproducer', ['-a', 'sleep', '-c', rc])
  expect(loaded.filter((name) => !name.endsWith('.js'))).toEqual(['yaml'])
}, 60_000)

test.each([
  ['qproducer', '--help'],
  ['qproducer', '--version'],
  ['qworker', '--help'],
  ['qworker', '--version'],
  ['qworker', 'init', '--help'],
])(
  '%s %s loads commander alone',
  async (program, ...args) => {
    const loaded = await listLoaded(program, args)
    expect(loaded.filter((name) => !name.endsWith('.js'))).toEqual(['commander'])
  },
  60_000,
)
