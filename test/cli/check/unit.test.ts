import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir, userInfo } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { checkStop, parseTimeSpan } from '../../../src/cli/check/unit.ts'
import { DEFAULTS } from '../../../src/config.ts'
import { PROJECT } from '../../support/installation.ts'

const RC = '/etc/qworkerrc'
const CONFIG = { ...DEFAULTS, DRAIN_TIME: 70 }

/** A unit of this user that starts the worker with RC, and whatever else its service says. */
function writeUnit(service: string, additions: Record<string, string> = {}): string {
  const dir = mkdtempSync(join(tmpdir(), 'qworker-unit-'))
  onTestFinished(() => rmSync(dir, { recursive: true }))
  const file = join(dir, 'w.service')
  const start = `ExecStart=/opt/qworker/bin/qworker -c ${RC}\nUser=${userInfo().username}\n`
  writeFileSync(file, `[Unit]\nTimeoutStopSec=1\n[Service]\n# TimeoutStopSec=2\n${start}${service}\n[Install]\nX=y\n`)
  mkdirSync(`${file}.d`)
  for (const [name, text] of Object.entries(additions)) writeFileSync(join(`${file}.d`, name), text)
  return file
}

async function told(config: typeof CONFIG, unit: string): Promise<string[]> {
  return (await checkStop(config, unit, RC)).map(({ level, check, message }) => `${level} ${check}: ${message}`)
}

test.each<[string, number | undefined]>([
  ['90', 90],
  ['90s', 90],
  ['1min 30s', 90],
  ['1.5 min', 90],
  ['2h', 7200],
  ['500ms', 0.5],
  ['infinity', Number.POSITIVE_INFINITY],
  ['0', Number.POSITIVE_INFINITY],
  ['soon', undefined],
  ['5 parsecs', undefined],
  ['', undefined],
])('the time span %j is %s seconds', (text, seconds) => {
  expect(parseTimeSpan(text)).toBe(seconds)
})

test('a unit that leaves the worker more than DRAIN_TIME and its margin is in order', async () => {
  expect(await told(CONFIG, writeUnit('TimeoutStopSec=1min 36s'))).toEqual([
    expect.stringMatching(/^ok unit: TimeoutStopSec is 96 s.*up to 95 s/),
    expect.stringMatching(/^ok stop: DRAIN_TIME 70 s/),
  ])
  expect((await told(CONFIG, writeUnit('TimeoutSec=infinity')))[0]).toMatch(/^ok unit/)
})

test('one that kills it in the middle is a problem, and a warning where the worker asks for more time', async () => {
  expect((await told(CONFIG, writeUnit('TimeoutStopSec=95')))[0]).toMatch(
    /^problem unit: TimeoutStopSec is 95 s.*systemd kills it in the middle; set TimeoutStopSec=96 or more/,
  )
  expect((await told(CONFIG, writeUnit('')))[0]).toMatch(/^problem unit: TimeoutStopSec is 90 s/)
  expect((await told(CONFIG, writeUnit('TimeoutStopSec=soon')))[0]).toMatch(
    /^problem unit: TimeoutStopSec=soon is no time/,
  )
  const notifies = 'Type=notify\nNotifyAccess=all\nTimeoutStopSec=30'
  expect((await told(CONFIG, writeUnit(notifies)))[0]).toMatch(/^warning unit.*systemd-notify gets through; set/)
})

test('a DRAIN_TIME shorter than a job with the default TTR may last is a warning', async () => {
  const unit = writeUnit('TimeoutStopSec=300')
  expect((await told({ ...CONFIG, DRAIN_TIME: 62 }, unit))[1]).toMatch(/^ok stop/)
  expect((await told({ ...CONFIG, DRAIN_TIME: 61 }, unit))[1]).toMatch(
    /^warning stop: DRAIN_TIME 61 s, and TTR \+ GRACE_TIME are 62 s:.*is interrupted and run again; set DRAIN_TIME to 62 or more/,
  )
})

test('what systemctl edit wrote beside it counts, and so does its environment', async () => {
  const edited = writeUnit('TimeoutStopSec=300', {
    'override.conf': '[Service]\nTimeoutStopSec=20\nEnvironment=DRAIN_TIME=2m "LANG=de DE"\n',
    'notes.txt': '[Service]\nTimeoutStopSec=1000\n',
  })
  const lines = await told(CONFIG, edited)
  expect(lines[0]).toMatch(/^problem unit: TimeoutStopSec is 20 s.*up to 145 s/)
  expect(lines[1]).toMatch(/^ok stop: DRAIN_TIME 120 s/)
  expect(lines[2]).toMatch(/^warning unit: the unit sets DRAIN_TIME=2m, which is not what was checked/)
  expect(lines).toHaveLength(3)
  expect(await told({ ...CONFIG, DRAIN_TIME: 120 }, edited)).toHaveLength(2)
})

test('a password in its environment is not shown', async () => {
  const lines = await told(CONFIG, writeUnit('TimeoutStopSec=300\nEnvironment=SMTP_PASSWORD=tr0ub4dor'))
  expect(lines.at(-1)).toMatch(/^warning unit: the unit sets SMTP_PASSWORD, which/)
})

test('the shipped unit is in order with the defaults, and tells what runs otherwise than it was checked', async () => {
  const lines = await told(DEFAULTS, join(PROJECT, 'etc', 'qworker.service'))
  expect(lines[0]).toMatch(/^ok unit: TimeoutStopSec is 90 s, .* up to 88 s/)
  expect(lines).toContainEqual(expect.stringMatching(/^warning unit: the unit sets RESULT_BASEDIR=\/var\/lib\/qworker/))
  expect(lines).toContainEqual(
    expect.stringMatching(/^warning unit: the unit runs the worker as qworker.*sudo -u qworker/),
  )
  const other = await checkStop(DEFAULTS, join(PROJECT, 'etc', 'qworker.service'), 'mine')
  expect(other.map(({ message }) => message)).toContainEqual(
    expect.stringMatching(/starts the worker with \/etc\/qworkerrc/),
  )
})

test('a unit that was named and is not there is a problem', async () => {
  expect((await checkStop(CONFIG, '/nowhere/w.service', RC))[0]).toMatchObject({ level: 'problem', exitCode: 66 })
})
