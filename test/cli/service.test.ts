import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { EXIT } from '../../src/cli/exit.ts'
import { DEFAULTS } from '../../src/config.ts'
import { leaveOut, PROJECT } from '../support/installation.ts'

const text = readFileSync(join(PROJECT, 'etc', 'qworker.service'), 'utf8')
const lines = text
  .split('\n')
  .filter((line) => line.includes('=') && !line.startsWith('#'))
  .map((line) => [line.slice(0, line.indexOf('=')), line.slice(line.indexOf('=') + 1)] as const)
const unit = new Map(lines)

test('each setting of the unit stands there once', () => {
  expect(lines.map(([key]) => key).filter((key, i, keys) => keys.indexOf(key) !== i)).toEqual([])
})

test('systemd waits for the worker, hears its child, and ends what the worker left', () => {
  expect(unit.get('Type')).toBe('notify')
  // systemd-notify is neither the main process nor one that systemd started.
  expect(unit.get('NotifyAccess')).toBe('all')
  expect(unit.get('KillMode')).toBe('mixed')
  expect(unit.get('ExecReload')).toBe('/bin/kill -HUP $MAINPID')
  expect(unit.get('Restart')).toBe('always')
  expect(unit.get('OOMPolicy')).toBe('continue')
})

test('the times of the unit leave room for those of the worker', () => {
  expect(Number(unit.get('TimeoutStopSec'))).toBeGreaterThanOrEqual(DEFAULTS.DRAIN_TIME + 20)
  // A slot is heard of at least so often; the watchdog is fed at each, but not sooner than a quarter of its time.
  const longest = (file: string, name: string) => {
    const source = readFileSync(join(PROJECT, 'src', file), 'utf8')
    return Number(new RegExp(`const ${name} = ([\\d_]+)`).exec(source)?.[1]?.replaceAll('_', ''))
  }
  const pass = Math.max(
    longest('worker/source.ts', 'RESERVE_SECONDS'),
    longest('worker/hold.ts', 'MAX_INTERVAL_MS') / 1000,
    longest('worker/slot.ts', 'RECONNECT_MAX_MS') / 1000,
  )
  const watchdog = Number(unit.get('WatchdogSec'))
  expect(watchdog / 4 + pass).toBeLessThan(watchdog * 0.75)
  expect(Number(unit.get('TimeoutStartSec'))).toBeGreaterThanOrEqual(30)
  expect([Number(unit.get('RestartSec')) > 0, unit.get('StartLimitIntervalSec')]).toEqual([true, '0'])
})

test('only what no restart can help is not restarted', () => {
  const codes = unit.get('RestartPreventExitStatus')?.split(' ').map(Number)
  expect(codes).toEqual([EXIT.usage, EXIT.noInput, EXIT.config])
})

test('the folder that may be written is the one that holds the results', () => {
  expect(unit.get('Environment')).toBe(`RESULT_BASEDIR=/var/lib/${unit.get('StateDirectory')}`)
  expect(unit.get('RequiresMountsFor')).toBe(`/var/lib/${unit.get('StateDirectory')}`)
})

test('the worker can do its work inside: see its runs, compile, own control groups, reach broker and clients', () => {
  expect(readFileSync(join(PROJECT, 'src/run/look.ts'), 'utf8')).toContain('/proc/loadavg')
  expect(unit.has('ProcSubset')).toBe(false)
  expect(unit.get('ProtectProc')).toBe('invisible')
  expect(unit.has('MemoryDenyWriteExecute')).toBe(false)
  expect([unit.has('Delegate'), unit.has('ProtectControlGroups')]).toEqual([true, false])
  expect(unit.get('RestrictAddressFamilies')?.split(' ')).toEqual(['AF_UNIX', 'AF_INET', 'AF_INET6'])
})

test('the package ships it', () => {
  expect(JSON.parse(readFileSync(join(PROJECT, 'package.json'), 'utf8')).files).toContain('etc')
})

test('systemd takes the unit without a complaint, and calls it well protected', (context) => {
  if (spawnSync('systemd-analyze', ['--version']).error) leaveOut(context, 'the unit: there is no systemd-analyze here')
  const dir = mkdtempSync(join(tmpdir(), 'qworker-unit-'))
  onTestFinished(() => rmSync(dir, { recursive: true }))
  const file = join(dir, 'qworker.service')
  writeFileSync(file, text.replaceAll('/opt/qworker/bin', join(PROJECT, 'bin')))
  const verified = spawnSync('systemd-analyze', ['verify', '--man=no', file], { encoding: 'utf8' })
  // What other units of this machine are told is not ours.
  const ours = verified.stderr.split('\n').filter((line) => /qworker/.test(line))
  expect(ours).toEqual([])
  const { stdout } = spawnSync('systemd-analyze', ['security', '--offline=true', '--no-pager', file], {
    encoding: 'utf8',
  })
  const [, exposure] = /exposure level for qworker\.service: ([\d.]+)/.exec(stdout) ?? []
  if (exposure !== undefined) expect(Number(exposure)).toBeLessThanOrEqual(2.5)
})
