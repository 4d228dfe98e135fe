// Waits for SIGUSR2; then writes much that need not be durable at once, and four times what must.
import { openTracker } from '../../dist/tracker/tracker.js'

const [url, worker, now, uuid] = process.argv.slice(2)
const tracker = await openTracker(url)
const start = { uuid, type: 't', ticket: '1', tube: 'x', attempt: 1, maxAttempts: 5, worker, run: 'r' }
const end = { ended: now, counts: true, record: '{}', state: 'open', outbox: false }
process.once('SIGUSR2', async () => {
  for (let fence = 0; fence < 20; fence++) {
    await tracker.begin({ ...start, started: now, deadline: now }, fence)
    const state = fence % 3 === 0 ? 'complete' : 'open'
    await tracker.end(uuid, fence + 1, fence === 19 ? { ...end, state: 'complete', outbox: true } : { ...end, state })
  }
  await tracker.outbox.settle(await tracker.outbox.take('o', 9), 'o', { done: true })
  await tracker.mark(uuid, 't', 'failed', false)
  await tracker.outbox.put(uuid)
  process.kill(process.pid, 'SIGKILL')
})
// The first write after the log was emptied syncs its header.
console.log((await tracker.mark('other', 't', 'open', false)) ?? 'ready')
setInterval(() => {}, 1000)
