# %% [markdown]
# # HW7  (exported from a notebook; the library's folder is put on the path)
# %%
import sys
sys.path.insert(0, "LIBRARY_FOLDER")
from SegStudio import *

# %%
dls = SegStudio(dataroot="./data/PurdueShapes5MultiObject/", image_size=[64, 64],
                path_saved_model="./nb_model", momentum=0.9, learning_rate=1e-4, epochs=1,
                batch_size=4, classes=('rectangle', 'triangle', 'disk', 'oval', 'star'), use_gpu=True)
segmenter = SegStudio.SemanticSegmentation(dl_studio=dls, max_num_objects=5)
train_ds = segmenter.PurdueShapes5MultiObjectDataset(dls, segmenter, 'train', "PurdueShapes5MultiObject-20-train.gz")
test_ds = segmenter.PurdueShapes5MultiObjectDataset(dls, segmenter, 'test', "PurdueShapes5MultiObject-20-test.gz")
segmenter.load_PurdueShapes5MultiObject_dataset(train_ds, test_ds)

# %% look at the data
label_names = list(dls.class_labels)
fig, axs = plt.subplots(3, 6, figsize=(12, 6))
for row in range(3):
    sample = train_ds[row]
    axs[row, 0].imshow(sample['image'].numpy().transpose(1, 2, 0).astype(np.uint8))
    for k in range(5):
        axs[row, k + 1].imshow(sample['mask_tensor'][k], cmap='gray', vmin=0, vmax=250)
        axs[row, k + 1].set_title(label_names[k])
plt.savefig("samples.png")
plt.close(fig)

# %% a network of my own out of the blocks
class MyUnet(nn.Module):
    def __init__(self, skip_connections=True, depth=4):
        super(MyUnet, self).__init__()
        DN = SegStudio.SemanticSegmentation.SkipBlockDN
        UP = SegStudio.SemanticSegmentation.SkipBlockUP
        self.conv_in = nn.Conv2d(3, 16, 3, padding=1)
        self.dn1 = DN(16, 16, downsample=True, skip_connections=skip_connections)
        self.to32 = DN(16, 32, skip_connections=skip_connections)
        self.mid = nn.ModuleList([DN(32, 32, skip_connections=skip_connections) for _ in range(depth // 2)])
        self.to16 = UP(32, 16, skip_connections=skip_connections)
        self.up1 = UP(16, 16, upsample=True, skip_connections=skip_connections)
        self.conv_out = nn.Conv2d(16, 5, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.conv_in(x))
        s = x
        x = self.to32(self.dn1(x))
        for block in self.mid:
            x = block(x)
        x = self.up1(self.to16(x))
        return self.conv_out(x + s)


class DiceLoss(nn.Module):
    def forward(self, output, target):
        loss = 0
        for b in range(output.shape[0]):
            for c in range(output.shape[1]):
                inter = (output[b, c] * target[b, c]).sum()
                loss = loss + 1 - 2 * inter / ((output[b, c] ** 2).sum() + (target[b, c] ** 2).sum() + 1e-6)
        return loss / (output.shape[0] * output.shape[1])


# %%
torch.manual_seed(1)
net = MyUnet()
net = net.to(dls.device)
opt = optim.Adam(net.parameters(), lr=1e-3)
crit = DiceLoss()
history = []
t0 = time.time()
for epoch in range(2):
    for i, data in enumerate(segmenter.train_dataloader):
        opt.zero_grad()
        out = net(data['image'].to(dls.device))
        loss = crit(out, data['mask_tensor'].to(dls.device).float()) + 0.001 * F.mse_loss(out, data['mask_tensor'].to(dls.device).float())
        loss.backward()
        opt.step()
        history.append(loss.item())
print("took", round(time.time() - t0), "loss", math.floor(history[-1]))
plt.plot(history); plt.savefig("curve.png"); plt.close()

# %% the package's loop on my network, my loop on its network
segmenter.run_code_for_training_for_semantic_segmentation(copy.deepcopy(net))
segmenter.save_model(net)
torch.save(net, "whole_model.pt")
again = torch.load("whole_model.pt", weights_only=False)
assert torch.equal(again.conv_in.weight, net.conv_in.weight)
theirs = segmenter.mUnet(skip_connections=True, depth=2)
torch.save(theirs, "whole_munet.pt")
back = torch.load("whole_munet.pt", weights_only=False)
assert type(back).__name__ == 'mUnet' and torch.equal(back.conv_out.weight, theirs.conv_out.weight)

# %% predictions
net.eval()
with torch.no_grad():
    data = next(iter(segmenter.test_dataloader))
    out = net(data['image'])
    grid = torchvision.utils.make_grid(torch.cat([data['image'], out.max(1, keepdim=True)[0].repeat(1, 3, 1, 1)]),
                                       nrow=4, normalize=True, scale_each=True, padding=2, pad_value=10)
    dls.display_tensor_as_image(grid, "input and prediction")
    dls.display_tensor_as_image(data['mask_tensor'][0, 0])
    dls.display_tensor_as_image(data['image'][0].type(torch.uint8), title="image 0")
with gzip.open(dls.dataroot + "PurdueShapes5MultiObject-20-test.gz", 'rb') as f:
    items, label_map = pickle.loads(f.read(), encoding='latin1')
assert label_map == test_ds.label_map
n = random.choice(range(20))
assert np.array_equal(np.array(items[n][3]), test_ds.dataset[n][3])
assert list(items[n][0]) == test_ds.dataset[n][0]
logging.getLogger().info("done")
assert re.match(r"\d+", "12") and isinstance(1, numbers.Number) and tvt.ToTensor() and os.path.exists("whole_model.pt")
print("all done")
