// Eight begin and end attempts of jobs of their own, and say each that is written, until the process is killed.
import { writeSync } from 'node:fs'
import { openTracker } from '../../dist/tracker/tracker.js'

const [url, worker, now] = process.argv.slice(2)
const tracker = await openTracker(url)
const end = { ended: now, counts: true, record: '{}', state: 'complete', outbox: false }
const slots = Array.from({ length: 8 }, async (_, slot) => {
  for (let i = 0; ; i++) {
    const uuid = String(slot * 1e6 + i).padStart(32, '0')
    const job = { uuid, type: 't', ticket: '1', tube: 'x', attempt: 1, maxAttempts: 5 }
    writeSync(1, `begun ${uuid} ${await tracker.begin({ ...job, worker, run: 'r', started: now, deadline: now }, 0)}\n`)
    if (await tracker.end(uuid, 1, end)) writeSync(1, `ended ${uuid} 1\n`)
  }
})
await Promise.all(slots)
