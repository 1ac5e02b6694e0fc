// Pictures as files, data URLs and canvases.

export async function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

export function pngOf(canvas) {
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

const SENT_AS_THEY_ARE = ["image/png", "image/jpeg", "image/webp"];

/**
 * A picture that the server takes: one that has too many pixels is scaled down, and one of a format
 * that only browsers read becomes a PNG.
 */
export async function fitted(blob, { edit_side, pixels }) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob);
  } catch {
    throw new Error("this file is no picture that the browser can read");
  }
  const { width, height } = bitmap;
  const scale = Math.min(1, edit_side / Math.max(width, height), Math.sqrt(pixels / (width * height)));
  if (scale === 1 && SENT_AS_THEY_ARE.includes(blob.type)) return { blob, width, height };
  const [w, h] = [width, height].map((side) => Math.max(1, Math.floor(side * scale)));
  const canvas = Object.assign(document.createElement("canvas"), { width: w, height: h });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, w, h);
  return { blob: await pngOf(canvas), width: w, height: h };
}

export function download(url, name) {
  const link = Object.assign(document.createElement("a"), { href: url, download: name });
  link.click();
}
