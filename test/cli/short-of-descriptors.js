// Says ready while no descriptor is left, then again when there are some.
import { closeSync, openSync } from 'node:fs'
import { openNotifier } from '../../dist/cli/notify.js'
import { serviceEnvironment } from '../../dist/config.js'

const onProblem = (problem) => console.log(`problem: ${problem}`)
const clock = { now: 0 }
const notifier = openNotifier({ service: serviceEnvironment(), onProblem, now: () => clock.now })
const taken = []
try {
  for (;;) taken.push(openSync('/dev/null', 'r'))
} catch {}
notifier.ready()
await notifier.close()
for (const fd of taken) closeSync(fd)
console.log('freed')
clock.now = 60_000
notifier.feed()
await notifier.close()
console.log('closed')
