// SPDX-License-Identifier: Apache-2.0
// A page that was opened as a file may not start a worker, so the search of the theme runs in a hidden frame instead.
(function () {
  'use strict'
  if (window.location.protocol !== 'file:') return

  class FrameWorker extends EventTarget {
    constructor(url) {
      super()
      this.waiting = []
      this.onmessage = null
      this.frame = document.createElement('iframe')
      this.frame.hidden = true
      document.documentElement.appendChild(this.frame)
      const inside = this.frame.contentWindow
      // Ends the loading of the empty page, which some browsers would put in place of this one later.
      inside.document.open()
      inside.document.write('<!doctype html><body></body>')
      inside.document.close()
      // In a worker this call goes to the page; in a frame it would go to the frame itself.
      inside.postMessage = data => {
        const event = new MessageEvent('message', {data})
        this.dispatchEvent(event)
        if (this.onmessage) this.onmessage(event)
      }
      inside.importScripts = (...urls) => urls.reduce((before, each) => before.then(() => load(inside, each)), Promise.resolve())
      load(inside, new URL(url, document.baseURI).href).then(() => {
        const waiting = this.waiting
        this.waiting = null
        waiting.forEach(data => this.deliver(data))
      }, () => this.dispatchEvent(new Event('error')))
    }

    postMessage(data) {
      if (this.waiting) this.waiting.push(data)
      else this.deliver(data)
    }

    deliver(data) {
      const inside = this.frame.contentWindow
      inside.dispatchEvent(new inside.MessageEvent('message', {data}))
    }

    terminate() {
      this.frame.remove()
    }
  }

  function load(inside, url) {
    return new Promise((done, failed) => {
      const script = inside.document.createElement('script')
      script.src = url
      script.onload = done
      script.onerror = failed
      inside.document.body.appendChild(script)
    })
  }

  window.Worker = FrameWorker
})()
